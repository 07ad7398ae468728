// SPDX-License-Identifier: Apache-2.0
#include "pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace ringattn::tool {

Balance balance(const RingSteps& ring) {
  const auto world = static_cast<double>(ring.ranks.size());
  const std::size_t steps = ring.ranks.front().size();
  std::vector<double> totals(ring.ranks.size(), 0.0);
  double sum = 0, paced = 0;
  for (std::size_t s = 0; s < steps; ++s) {
    double most = 0;
    for (std::size_t r = 0; r < ring.ranks.size(); ++r) {
      const auto work = static_cast<double>(ring.ranks[r][s].counts.flops);
      totals[r] += work;
      sum += work;
      most = std::max(most, work);
    }
    paced += most;
  }
  if (sum == 0) return {};
  return {sum / world / *std::max_element(totals.begin(), totals.end()), sum / world / paced};
}

bool dead_hop(const RingSteps& ring, std::size_t step) {
  return std::all_of(ring.ranks.begin(), ring.ranks.end(),
                     [step](const auto& rank) { return rank[step].counts.pairs == 0; });
}

std::string with_unit(double value, const char* unit) {
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  std::size_t p = 0;
  while (value >= 999.5 && p + 1 < std::size(kPrefixes)) {
    value /= 1000;
    ++p;
  }
  const int digits = p == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}{}", value, digits, kPrefixes[p], unit);
}

std::string draw_plan(const std::string& title, const std::string& subtitle, const TileMap& map,
                      const std::string& mask_caption, const std::vector<RingSteps>& passes) {
  constexpr double kMargin = 24;
  Svg svg;
  // Browsers and printers cut long lines silently; fewer points keep them whole.
  const double size = std::min(18.0, 1000.0 / Svg::text_width(title, 1.0));
  svg.text(kMargin, kMargin + 16, title, {.size = size, .bold = true});
  svg.text(kMargin, kMargin + 36, subtitle, {.size = 11, .fill = "#52606d"});
  double y = kMargin + 62;
  double width = kMargin + std::max(size * 0.62 * static_cast<double>(title.size()),
                                    Svg::text_width(subtitle, 11));
  const Extent mask = draw_mask(svg, kMargin, y, map, mask_caption);
  y += mask.height + 20;
  width = std::max(width, kMargin + mask.width);
  for (const RingSteps& pass : passes) {
    const Extent ring = draw_ring(svg, kMargin, y, pass);
    y += ring.height + 20;
    width = std::max(width, kMargin + ring.width);
  }
  return svg.document(width + kMargin, y, title);
}

}  // namespace ringattn::tool
