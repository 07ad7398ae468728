// SPDX-License-Identifier: Apache-2.0
// A small SVG writer: shapes and text in one flat list. It knows nothing of what it draws, and
// offers no transforms, styles or scripts: what is written is what a reader sees everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ringattn::tool {

/// Lengths are in pixels, y grows downwards.
class Svg {
 public:
  struct Box {
    double x, y, width, height;
  };

  enum class Anchor { kStart, kMiddle, kEnd };

  struct Font {
    double size = 12;
    std::string_view fill = "#1f2933";
    Anchor anchor = Anchor::kStart;
    bool bold = false;
  };

  /// `stroke` empty: no border. `tip` is what a browser shows under the pointer.
  void rect(Box box, std::string_view fill, std::string_view stroke = {}, std::string_view tip = {},
            double radius = 0);
  void dashed(Box box, std::string_view stroke);
  void line(double x1, double y1, double x2, double y2, std::string_view stroke, double width = 1);

  /// From (x1, y) to (x2, y), with a head at x2.
  void arrow(double x1, double x2, double y, std::string_view stroke);
  void text(double x, double y, std::string_view what, Font font);

  /// Reads from below to above, centred at (x, y).
  void text_upwards(double x, double y, std::string_view what, Font font);

  /// The whole file.
  std::string document(double width, double height, std::string_view title) const;

  /// An upper estimate of the width of text, for layouts: fonts differ between machines.
  static double text_width(std::string_view what, double size) {
    return 0.62 * size * static_cast<double>(what.size());
  }

 private:
  std::string body_;
};

/// Red, green and blue in [0, 1].
struct Colour {
  double red, green, blue;
};

Colour mix(Colour a, Colour b, double share_of_b);
std::string hex(Colour colour);

}  // namespace ringattn::tool
