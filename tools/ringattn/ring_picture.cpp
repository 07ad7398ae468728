// SPDX-License-Identifier: Apache-2.0
// The ring's timeline: a lane per rank, a column per hop.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "pictures.h"

namespace ringattn::tool {
namespace {

constexpr double kLabels = 64;    // room for the lanes' names
constexpr double kTotals = 210;   // room for the sums at the right
constexpr double kColumns = 760;  // of all hops together
constexpr double kHeader = 82;    // caption, summary, names of hops
constexpr double kFooter = 40;
constexpr std::size_t kMaxLanes = 64;    // lanes and columns beyond this are sampled
constexpr double kReadable = 84;         // a column that has room for text
constexpr std::size_t kWordyLanes = 16;  // more lanes than this make the picture too tall to see

constexpr Colour kGround{0.93, 0.95, 0.97};
constexpr Colour kWork{0.16, 0.39, 0.68};
constexpr Svg::Font kSmall{.size = 11, .fill = "#52606d"};
constexpr Svg::Font kCentred{.size = 11, .fill = "#52606d", .anchor = Svg::Anchor::kMiddle};
constexpr const char* kTransfer = "#c05621";

std::vector<std::size_t> sample(std::size_t n) {
  std::vector<std::size_t> picked;
  const std::size_t shown = std::min(n, kMaxLanes);
  for (std::size_t i = 0; i < shown; ++i) picked.push_back(i * n / shown);
  return picked;
}

double flops_of(const std::vector<StepCounts>& steps) {
  double sum = 0;
  for (const StepCounts& s : steps) sum += static_cast<double>(s.counts.flops);
  return sum;
}

struct Timeline {
  Svg& svg;
  const RingSteps& ring;
  double x, y;  // of the first lane's first column
  std::vector<std::size_t> ranks, steps;
  double column = 0, lane = 0;
  double most = 1;  // FLOPs of the heaviest step

  bool readable() const { return column >= kReadable && ranks.size() <= kWordyLanes; }
};

Timeline make_timeline(Svg& svg, double x, double y, const RingSteps& ring) {
  Timeline t{svg,
             ring,
             x + kLabels,
             y + kHeader,
             sample(ring.ranks.size()),
             sample(ring.ranks.front().size()),
             0,
             0,
             1};
  t.column = std::min(kColumns / static_cast<double>(t.steps.size()), 190.0);
  t.lane = t.readable() ? 40 : std::clamp(480 / static_cast<double>(t.ranks.size()), 5.0, 24.0);
  for (const auto& rank : ring.ranks) {
    for (const StepCounts& s : rank) {
      t.most = std::max(t.most, static_cast<double>(s.counts.flops));
    }
  }
  return t;
}

/// "hop 1 (+1)": the offset says which way blocks travel.
std::string hop_name(const Step& step, std::size_t index) {
  if (step.offset == 0) return "own keys";
  return fmt::format("hop {} ({:+d})", index, step.offset);
}

std::int64_t bytes_sent(const RingSteps& ring, std::size_t step) {
  std::int64_t sum = 0;
  for (const auto& rank : ring.ranks) sum += rank[step].counts.bytes;
  return sum;
}

void draw_columns(const Timeline& t) {
  const double bottom = t.y + t.lane * static_cast<double>(t.ranks.size());
  const auto apart = static_cast<std::size_t>(std::ceil(kReadable / t.column));
  for (std::size_t c = 0; c < t.steps.size(); ++c) {
    const double left = t.x + t.column * static_cast<double>(c);
    const double middle = left + t.column / 2;
    if (c > 0 && t.readable()) t.svg.line(left, t.y - 20, left, bottom + 20, "#cbd2d9");
    if (c % apart != 0) continue;
    const std::size_t s = t.steps[c];
    t.svg.text(middle, t.y - 8, hop_name(t.ring.ranks[0][s].step, s),
               {.size = 11, .anchor = Svg::Anchor::kMiddle, .bold = true});
    const std::int64_t bytes = bytes_sent(t.ring, s);
    const char* state = dead_hop(t.ring, s) ? "dead hop" : nullptr;
    t.svg.text(middle, bottom + 16,
               bytes == 0 ? (state != nullptr ? state : "nothing sent")
                          : with_unit(static_cast<double>(bytes), "B") + " sent",
               kCentred);
  }
}

/// One rank at one hop, with room for words.
void draw_box(const Timeline& t, const StepCounts& s, double left, double top) {
  const double inner = t.column - 16;
  const Svg::Box box{left + 8, top + 5, inner, t.lane - 16};
  if (s.step.receives) {
    t.svg.arrow(left - t.column + 16, left + 6, top + t.lane - 5, kTransfer);
  }
  if (!s.step.live || s.counts.flops == 0) {
    t.svg.dashed(box, "#9aa5b1");
    t.svg.text(box.x + inner / 2, box.y + 16, "no work", kCentred);
    return;
  }
  const double share = static_cast<double>(s.counts.flops) / t.most;
  const std::string label = fmt::format("r{}: {:.0f} %", s.step.owner, share * 100);
  t.svg.rect(box, hex(kGround), {},
             fmt::format("rank {} keys: {} pairs, {} tiles, {} full", s.step.owner, s.counts.pairs,
                         s.counts.tiles.visited, s.counts.tiles.full),
             3);
  t.svg.rect({box.x, box.y, std::max(inner * share, 2.0), box.height}, hex(kWork), {}, {}, 3);
  const bool fits = inner * share > Svg::text_width(label, 11) + 8;
  t.svg.text(fits ? box.x + 6 : box.x + inner * share + 5, box.y + 16, label,
             {.size = 11, .fill = fits ? "#ffffff" : "#1f2933"});
}

void draw_lane(const Timeline& t, std::size_t row) {
  const std::size_t rank = t.ranks[row];
  const double top = t.y + t.lane * static_cast<double>(row);
  for (std::size_t c = 0; c < t.steps.size(); ++c) {
    const StepCounts& s = t.ring.ranks[rank][t.steps[c]];
    const double left = t.x + t.column * static_cast<double>(c);
    if (t.readable()) {
      draw_box(t, s, left, top);
    } else {
      const double share = static_cast<double>(s.counts.flops) / t.most;
      const bool works = s.step.live && s.counts.flops > 0;
      // Even a little work must differ from none.
      const double shade = 0.15 + 0.85 * share;
      t.svg.rect({left, top, t.column - 1, t.lane - 1},
                 works ? hex(mix(kGround, kWork, shade)) : "#f7f8f9");
    }
  }
}

void draw_totals(const Timeline& t) {
  double most = 1;
  for (const auto& rank : t.ring.ranks) most = std::max(most, flops_of(rank));
  const double left = t.x + t.column * static_cast<double>(t.steps.size()) + 18;
  t.svg.text(left, t.y - 8, "work of the whole pass", {.size = 11, .bold = true});
  const auto apart = static_cast<std::size_t>(std::ceil(16 / t.lane));
  for (std::size_t i = 0; i < t.ranks.size(); ++i) {
    const double top = t.y + t.lane * static_cast<double>(i);
    const double share = flops_of(t.ring.ranks[t.ranks[i]]) / most;
    const double height = t.readable() ? t.lane - 16 : std::max(t.lane - 1, 1.0);
    const double inset = t.readable() ? 5 : 0;
    t.svg.rect({left, top + inset, 120, height}, hex(kGround));
    t.svg.rect({left, top + inset, 120 * share, height}, "#627d98");
    if (i % apart != 0) continue;
    const double base = top + (t.readable() ? 21 : std::min(t.lane / 2 + 4, 10.0));
    t.svg.text(left + 128, base, fmt::format("{:.0f} %", share * 100), kSmall);
    t.svg.text(t.x - 8, base, fmt::format("rank {}", t.ranks[i]),
               {.size = 11, .anchor = Svg::Anchor::kEnd});
  }
}

std::string summary(const RingSteps& ring) {
  std::int64_t hops = 0, bytes = 0;
  double flops = 0;
  for (const auto& rank : ring.ranks) {
    std::int64_t mine = 0;
    for (const StepCounts& s : rank) {
      mine += s.counts.hops;
      bytes += s.counts.bytes;
    }
    hops = std::max(hops, mine);
    flops += flops_of(rank);
  }
  const Balance even = balance(ring);
  return fmt::format(
      "{} transfers of the busiest rank, {} sent by all, {}; balance {:.2f}, {:.2f} "
      "if every hop waits for the slowest",
      hops, with_unit(static_cast<double>(bytes), "B"), with_unit(flops, "FLOP"), even.total,
      even.paced);
}

}  // namespace

Extent draw_ring(Svg& svg, double x, double y, const RingSteps& ring) {
  const Timeline t = make_timeline(svg, x, y, ring);
  const bool forward = ring.pass == Pass::kForward;
  svg.text(x, y + 14, forward ? "Forward, hop by hop" : "Backward, hop by hop",
           {.size = 14, .bold = true});
  svg.text(x, y + 33, summary(ring), kSmall);
  draw_columns(t);
  for (std::size_t i = 0; i < t.ranks.size(); ++i) draw_lane(t, i);
  draw_totals(t);
  const double bottom = t.y + t.lane * static_cast<double>(t.ranks.size()) + 34;
  std::string key =
      t.readable() ? "Bars: work of a step, against the heaviest step; rK: whose keys. Arrows: the "
                     "next block arrives meanwhile. Dashed: no visible pair."
                   : "Shade: work of a step, against the heaviest step. White: no visible pair.";
  if (!forward) key += " Bytes include dK and dV.";
  if (t.ranks.size() < ring.ranks.size()) {
    key += fmt::format(" {} of {} ranks are drawn.", t.ranks.size(), ring.ranks.size());
  }
  svg.text(x, bottom + 6, key, kSmall);
  const double width = kLabels + t.column * static_cast<double>(t.steps.size()) + kTotals;
  return {std::max(width, 760.0), bottom - y + kFooter - 20};
}

}  // namespace ringattn::tool
