// SPDX-License-Identifier: Apache-2.0
// The mask over query x key positions, tile by tile.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pictures.h"

namespace ringattn::tool {
namespace {

constexpr double kSide = 600;  // pixels of the longer axis
constexpr double kLeft = 96;   // room for the query axis and its labels
constexpr double kTop = 74;    // caption, key axis
constexpr double kStrip = 14;  // the coloured strip that says whose rows these are
constexpr double kLegend = 250;

constexpr Colour kFull{0.16, 0.39, 0.68};
constexpr Colour kMasked{0.96, 0.68, 0.26};
constexpr Colour kSkipped{0.945, 0.95, 0.96};

constexpr Svg::Font kSmall{.size = 11, .fill = "#52606d"};

/// Neighbouring ranks differ; ranks far apart may share a colour.
std::string rank_colour(int rank) {
  static constexpr Colour kPalette[] = {{0.35, 0.56, 0.79}, {0.90, 0.56, 0.36}, {0.45, 0.68, 0.48},
                                        {0.70, 0.51, 0.73}, {0.84, 0.72, 0.36}, {0.41, 0.70, 0.72},
                                        {0.83, 0.50, 0.56}, {0.58, 0.58, 0.60}};
  return hex(kPalette[rank % 8]);
}

std::string cell_colour(const TileMap::Cell& cell) {
  const double full = std::clamp(static_cast<double>(cell.full), 0.0, 1.0);
  const double masked = std::clamp(static_cast<double>(cell.masked), 0.0, 1.0 - full);
  // Shares in 16 steps: neighbouring cells of one colour then become one rectangle.
  const double visited = std::ceil((full + masked) * 16) / 16;
  if (visited == 0) return hex(kSkipped);
  const double share = std::round(masked / (full + masked) * 16) / 16;
  return hex(mix(kSkipped, mix(kFull, kMasked, share), visited));
}

/// "0", "512", "96k", "1.5M": positions as labels.
std::string position(std::int64_t p) {
  if (p >= 1 << 20 && p % (1 << 16) == 0)
    return fmt::format("{:g}M", static_cast<double>(p) / 1048576);
  if (p >= 8192 && p % 256 == 0) return fmt::format("{:g}k", static_cast<double>(p) / 1024);
  return std::to_string(p);
}

struct Frame {
  Svg& svg;
  const TileMap& map;
  double x, y, width, height;

  /// Borders of many ranks must not cover what they divide.
  double border() const { return map.keys.parts.size() + map.queries.parts.size() > 32 ? 0.3 : 1; }

  double key_x(std::int64_t k) const {
    return x + width * static_cast<double>(k) / static_cast<double>(map.keys.length);
  }
  double query_y(std::int64_t q) const {
    return y + height * static_cast<double>(q) / static_cast<double>(map.queries.length);
  }
};

void draw_cells(const Frame& f) {
  for (std::int64_t q = 0; q < f.map.queries.cells(); ++q) {
    const double top = f.query_y(f.map.queries.edges[static_cast<std::size_t>(q)]);
    const double bottom = f.query_y(f.map.queries.edges[static_cast<std::size_t>(q) + 1]);
    for (std::int64_t k = 0; k < f.map.keys.cells();) {
      const std::string colour = cell_colour(f.map.at(q, k));
      const std::int64_t begin = k;
      while (k < f.map.keys.cells() && cell_colour(f.map.at(q, k)) == colour) ++k;
      if (colour == hex(kSkipped)) continue;  // the ground
      const double left = f.key_x(f.map.keys.edges[static_cast<std::size_t>(begin)]);
      const double right = f.key_x(f.map.keys.edges[static_cast<std::size_t>(k)]);
      f.svg.rect({left, top, right - left, bottom - top}, colour);
    }
  }
}

/// Lines between tiles, where there are few enough to see.
void draw_grid(const Frame& f) {
  const auto visible = [](const TileAxis& axis) { return !axis.coarse() && axis.cells() <= 64; };
  if (!visible(f.map.queries) || !visible(f.map.keys)) return;
  for (const std::int64_t q : f.map.queries.edges) {
    f.svg.line(f.x, f.query_y(q), f.x + f.width, f.query_y(q), "#ffffff", 0.5);
  }
  for (const std::int64_t k : f.map.keys.edges) {
    f.svg.line(f.key_x(k), f.y, f.key_x(k), f.y + f.height, "#ffffff", 0.5);
  }
}

void draw_key_axis(const Frame& f) {
  double free = f.x - 100;  // labels may begin here
  for (const TileAxis::Part& part : f.map.keys.parts) {
    const double left = f.key_x(part.rows.begin), right = f.key_x(part.rows.end);
    f.svg.rect({left, f.y - kStrip - 3, right - left, kStrip}, rank_colour(part.rank));
    if (right - left >= 22) {
      f.svg.text((left + right) / 2, f.y - 6.5, fmt::format("r{}", part.rank),
                 {.size = 10, .fill = "#ffffff", .anchor = Svg::Anchor::kMiddle, .bold = true});
    }
    if (part.rows.begin > 0)
      f.svg.line(left, f.y - kStrip - 3, left, f.y + f.height, "#1f2933", f.border());
    const std::string label = position(part.rows.begin);
    const double end = f.x + f.width - Svg::text_width(position(f.map.keys.length), 11) - 6;
    if (left >= free && left + Svg::text_width(label, 11) < end) {
      f.svg.text(left, f.y - kStrip - 8, label, kSmall);
      free = left + Svg::text_width(label, 11) + 8;
    }
  }
  f.svg.text(f.x + f.width, f.y - kStrip - 8, position(f.map.keys.length),
             {.size = 11, .fill = "#52606d", .anchor = Svg::Anchor::kEnd});
}

void draw_query_axis(const Frame& f) {
  double free = f.y - 100;
  constexpr Svg::Font kLabel{.size = 11, .fill = "#52606d", .anchor = Svg::Anchor::kEnd};
  for (const TileAxis::Part& part : f.map.queries.parts) {
    const double top = f.query_y(part.rows.begin), bottom = f.query_y(part.rows.end);
    f.svg.rect({f.x - kStrip - 3, top, kStrip, bottom - top}, rank_colour(part.rank));
    if (bottom - top >= 22) {
      f.svg.text_upwards(f.x - 6.5, (top + bottom) / 2, fmt::format("r{}", part.rank),
                         {.size = 10, .fill = "#ffffff", .bold = true});
    }
    if (part.rows.begin > 0)
      f.svg.line(f.x - kStrip - 3, top, f.x + f.width, top, "#1f2933", f.border());
    if (top >= free && top < f.y + f.height - 22) {
      f.svg.text(f.x - kStrip - 8, top + 9, position(part.rows.begin), kLabel);
      free = top + 16;
    }
  }
  f.svg.text(f.x - kStrip - 8, f.y + f.height, position(f.map.queries.length), kLabel);
}

void draw_legend(const Frame& f) {
  const double x = f.x + f.width + 28;
  double y = f.y;
  const auto entry = [&](Colour colour, const char* name, const char* meaning) {
    f.svg.rect({x, y, 16, 16}, hex(colour), "#9aa5b1");
    f.svg.text(x + 24, y + 12.5, name, {.size = 12, .bold = true});
    f.svg.text(x + 24, y + 28, meaning, kSmall);
    y += 44;
  };
  entry(kFull, "full", "visited, every pair visible");
  entry(kMasked, "masked", "visited, some pairs visible");
  entry(kSkipped, "skipped", "no visible pair, no work");
  double full = 0, masked = 0;
  for (std::int64_t q = 0; q < f.map.queries.cells(); ++q) {
    const auto i = static_cast<std::size_t>(q);
    for (std::int64_t k = 0; k < f.map.keys.cells(); ++k) {
      const auto j = static_cast<std::size_t>(k);
      const double area =
          static_cast<double>(f.map.queries.edges[i + 1] - f.map.queries.edges[i]) *
          static_cast<double>(f.map.keys.edges[j + 1] - f.map.keys.edges[j]) /
          (static_cast<double>(f.map.queries.length) * static_cast<double>(f.map.keys.length));
      full += f.map.at(q, k).full * area;
      masked += f.map.at(q, k).masked * area;
    }
  }
  const auto line = [&](const std::string& what) {
    f.svg.text(x, y + 10, what, kSmall);
    y += 17;
  };
  line("of the whole square:");
  line(fmt::format("  {:.1f} % full, {:.1f} % masked,", full * 100, masked * 100));
  line(fmt::format("  {:.1f} % skipped", (1 - full - masked) * 100));
  y += 8;
  line(fmt::format("tiles of {} queries x {} keys", f.map.queries.tile, f.map.keys.tile));
  if (f.map.queries.coarse() || f.map.keys.coarse()) {
    line(fmt::format("{} x {} tiles, drawn as {} x {}", f.map.queries.tiles, f.map.keys.tiles,
                     f.map.queries.cells(), f.map.keys.cells()));
    line("cells; a shade is a mean of tiles");
  }
}

}  // namespace

Extent draw_mask(Svg& svg, double x, double y, const TileMap& map, const std::string& caption) {
  svg.text(x, y + 14, caption, {.size = 14, .bold = true});
  if (map.cells.empty()) {
    svg.text(x, y + 40, "There are no queries or no keys: nothing to draw.", kSmall);
    return {kSide, 60};
  }
  // The axes have one scale, unless the short one would be too thin to read.
  const auto q = static_cast<double>(map.queries.length), k = static_cast<double>(map.keys.length);
  const double width = std::max(kSide * std::min(1.0, k / q), 160.0);
  const double height = std::max(kSide * std::min(1.0, q / k), 160.0);
  const Frame frame{svg, map, x + kLeft, y + kTop, width, height};
  svg.rect({frame.x, frame.y, width, height}, hex(kSkipped));
  draw_cells(frame);
  draw_grid(frame);
  draw_key_axis(frame);
  draw_query_axis(frame);
  svg.rect({frame.x, frame.y, width, height}, "none", "#1f2933");
  const char* order = map.queries.global ? "position" : "rows, rank by rank";
  svg.text(frame.x + width / 2, frame.y - kStrip - 24, fmt::format("key {}", order),
           {.size = 12, .anchor = Svg::Anchor::kMiddle});
  svg.text_upwards(x + 12, frame.y + height / 2, fmt::format("query {}", order), {.size = 12});
  draw_legend(frame);
  return {kLeft + width + 28 + kLegend, kTop + std::max(height, 260.0) + 16};
}

}  // namespace ringattn::tool
