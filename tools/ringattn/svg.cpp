// SPDX-License-Identifier: Apache-2.0
#include "svg.h"

#include <fmt/format.h>

#include <cmath>

namespace ringattn::tool {
namespace {

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

/// A tenth of a pixel is finer than anyone sees, and "12" is shorter than "12.0".
std::string number(double x) {
  std::string s = fmt::format("{:.1f}", x);
  if (s.ends_with(".0")) s.resize(s.size() - 2);
  return s;
}

std::string attributes(const Svg::Font& font) {
  const char* anchor = font.anchor == Svg::Anchor::kMiddle ? " text-anchor=\"middle\""
                       : font.anchor == Svg::Anchor::kEnd  ? " text-anchor=\"end\""
                                                           : "";
  return fmt::format("font-size=\"{}\" fill=\"{}\"{}{}", number(font.size), font.fill, anchor,
                     font.bold ? " font-weight=\"bold\"" : "");
}

std::string geometry(const Svg::Box& box) {
  return fmt::format("x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"", number(box.x), number(box.y),
                     number(box.width), number(box.height));
}

}  // namespace

void Svg::rect(Box box, std::string_view fill, std::string_view stroke, std::string_view tip,
               double radius) {
  body_ += fmt::format("<rect {} fill=\"{}\"", geometry(box), fill);
  if (!stroke.empty()) body_ += fmt::format(" stroke=\"{}\"", stroke);
  if (radius > 0) body_ += fmt::format(" rx=\"{}\"", number(radius));
  body_ += tip.empty() ? "/>\n" : fmt::format("><title>{}</title></rect>\n", escaped(tip));
}

void Svg::dashed(Box box, std::string_view stroke) {
  body_ += fmt::format("<rect {} fill=\"none\" stroke=\"{}\" stroke-dasharray=\"3 3\" rx=\"3\"/>\n",
                       geometry(box), stroke);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view stroke, double width) {
  body_ += fmt::format(
      "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{}\" stroke-width=\"{}\"/>\n",
      number(x1), number(y1), number(x2), number(y2), stroke, number(width));
}

void Svg::arrow(double x1, double x2, double y, std::string_view stroke) {
  const double head = x2 > x1 ? -5 : 5;
  line(x1, y, x2 + head, y, stroke, 1.5);
  body_ += fmt::format("<polygon points=\"{0},{1} {2},{3} {2},{4}\" fill=\"{5}\"/>\n", number(x2),
                       number(y), number(x2 + head), number(y - 3.5), number(y + 3.5), stroke);
}

void Svg::text(double x, double y, std::string_view what, Font font) {
  body_ += fmt::format("<text x=\"{}\" y=\"{}\" {}>{}</text>\n", number(x), number(y),
                       attributes(font), escaped(what));
}

void Svg::text_upwards(double x, double y, std::string_view what, Font font) {
  font.anchor = Anchor::kMiddle;
  body_ += fmt::format("<text transform=\"translate({} {}) rotate(-90)\" {}>{}</text>\n", number(x),
                       number(y), attributes(font), escaped(what));
}

std::string Svg::document(double width, double height, std::string_view title) const {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n"
      "<title>{2}</title>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n{3}</svg>\n",
      number(width), number(height), escaped(title), body_);
}

Colour mix(Colour a, Colour b, double t) {
  return {a.red + (b.red - a.red) * t, a.green + (b.green - a.green) * t,
          a.blue + (b.blue - a.blue) * t};
}

std::string hex(Colour c) {
  const auto byte = [](double x) { return std::lround(x * 255.0); };
  return fmt::format("#{:02x}{:02x}{:02x}", byte(c.red), byte(c.green), byte(c.blue));
}

}  // namespace ringattn::tool
