// SPDX-License-Identifier: Apache-2.0
#include "ring.h"

#include <cstdlib>

#include "backend.h"

namespace ringattn {

TravellingBlocks::TravellingBlocks(Communicator& ring, const Plan& plan, const Workspace& workspace,
                                   Stream stream)
    : ring_(ring),
      plan_(plan),
      workspace_(workspace),
      stream_(stream),
      here_(workspace.own_block) {}

void TravellingBlocks::depart(const Step& next) {
  const int direction = next.offset > 0 ? 1 : -1;
  // A new direction starts again from home.
  const bool from_home = next.offset == direction;
  const std::span<const std::byte> from = from_home ? workspace_.own_block : here_;
  // Copying rings have two buffers: the one that is free now was sent from one hop ago.
  if (!plan_.hands_over() && !open_.empty()) {
    ring_.finish(open_.back(), stream_);
    open_.pop_back();
  }
  const std::size_t expected = next.receives ? plan_.block_layout(next.owner).bytes : 0;
  std::span<std::byte> in;
  if (!plan_.hands_over()) {
    in = workspace_.received_blocks[next_buffer_].first(expected);
    next_buffer_ = 1 - next_buffer_;
  }
  const auto out = next.sends ? from : std::span<const std::byte>{};
  bytes_ += static_cast<std::int64_t>(out.size());
  const Cargo cargo{next.offset, next.carried, next.owner};
  open_.push_back(ring_.shift(out, in, expected, direction, stream_, cargo));
}

void TravellingBlocks::arrive(const Step& next) {
  const auto block = ring_.wait(open_.back(), stream_);
  if (next.receives) here_ = block;
}

void TravellingBlocks::finish(Traffic& traffic) {
  for (; !open_.empty(); open_.pop_back()) ring_.finish(open_.back(), stream_);
  traffic.bytes += bytes_;
}

void TravellingBlocks::abandon() noexcept {
  for (; !open_.empty(); open_.pop_back()) {
    try {
      ring_.finish(open_.back(), stream_);
    } catch (...) {  // the first error is already on its way to the caller
    }
  }
}

TravellingSums::TravellingSums(Communicator& ring, const Plan& plan, const Backend& backend,
                               const Route& route, const Workspace& workspace, Executor& executor,
                               Stream stream)
    : ring_(ring),
      plan_(plan),
      backend_(backend),
      route_(route),
      workspace_(workspace),
      executor_(executor),
      stream_(stream) {}

std::span<std::byte> TravellingSums::part(std::size_t s) {
  const Step& step = route_.steps[s];
  if (s >= 1) finish_shifts(s - 1);  // what was sent from this buffer two steps ago
  const auto buffer = step.offset == 0 ? workspace_.own_sums : workspace_.parts[s % 2];
  const auto part = buffer.first(plan_.sums_bytes(step.owner));
  if (!step.live && (step.receives || step.offset == 0)) {
    backend_.memory().zero(part, stream_);
  }
  return part;
}

void TravellingSums::pass_on(std::size_t s) {
  const Step& step = route_.steps[s];
  collect_home(s);
  if (step.offset == 0) return;
  const int direction = step.offset > 0 ? 1 : -1;
  const auto part = workspace_.parts[s % 2].first(plan_.sums_bytes(step.owner));
  if (onward_ >= 0 && step.receives) add(part, ring_.wait(onward_, stream_), step.owner);
  onward_ = -1;

  const bool buffers = !plan_.hands_over();
  if (const Step* next = route_.onward(s)) {
    const std::size_t expected = next->receives ? plan_.sums_bytes(next->owner) : 0;
    const auto in = buffers ? workspace_.received_sums.first(expected) : std::span<std::byte>{};
    post(s, next->sends ? part : std::span<std::byte>{}, in, expected, direction,
         {step.offset, step.owner, next->owner}, false);
    onward_ = open_.back().ticket;
  }
  const int reach = direction > 0 ? route_.forward_reach : route_.backward_reach;
  const bool comes_home = std::abs(step.offset) == reach;
  const auto home = route_.stops_here(s) ? part : std::span<std::byte>{};
  if (comes_home || !home.empty()) {
    const std::size_t expected = comes_home ? plan_.sums_bytes(plan_.rank()) : 0;
    const auto in = buffers ? workspace_.returned_sums[direction > 0 ? 0 : 1].first(expected)
                            : std::span<std::byte>{};
    post(s, home, in, expected, -step.offset, {step.offset, step.owner, plan_.rank()}, comes_home);
  }
}

void TravellingSums::post(std::size_t s, std::span<const std::byte> out, std::span<std::byte> in,
                          std::size_t expected, int offset, Cargo cargo, bool brings_home) {
  bytes_ += static_cast<std::int64_t>(out.size());
  open_.push_back({ring_.shift(out, in, expected, offset, stream_, cargo), s, brings_home});
}

void TravellingSums::add(std::span<std::byte> sum, std::span<const std::byte> part, int owner) {
  const Problem& p = plan_.problem();
  const std::int64_t rows = p.batch * plan_.key_rows(owner).size() * p.kv_heads;
  const auto value = static_cast<std::ptrdiff_t>(plan_.value_sums_offset(owner));
  backend_.accumulate(sum.data(), part.data(), rows * p.head_dim, executor_, stream_);
  backend_.accumulate(sum.data() + value, part.data() + value, rows * p.value_dim, executor_,
                      stream_);
}

void TravellingSums::collect_home(std::size_t before) {
  for (const Shift& shift : open_) {
    if (!shift.brings_home || shift.step >= before || shift.step < collected_) continue;
    add(workspace_.own_sums, ring_.wait(shift.ticket, stream_), plan_.rank());
  }
  collected_ = before;
}

void TravellingSums::finish_shifts(std::size_t before) {
  while (!open_.empty() && open_.front().step < before) {
    ring_.finish(open_.front().ticket, stream_);
    open_.erase(open_.begin());
  }
}

void TravellingSums::finish(Traffic& traffic) {
  collect_home(route_.steps.size());
  finish_shifts(route_.steps.size());
  traffic.bytes += bytes_;
}

void TravellingSums::abandon() noexcept {
  for (; !open_.empty(); open_.erase(open_.begin())) {
    try {
      ring_.finish(open_.front().ticket, stream_);
    } catch (...) {  // the first error is already on its way to the caller
    }
  }
}

void gather(Communicator& ring, const Memory& memory, std::span<std::byte> table, std::size_t bytes,
            Stream stream) {
  const int world = ring.size();
  const auto owner = [&](int hop) { return ((ring.rank() - hop) % world + world) % world; };
  const auto record = [&](int hop) {
    return table.subspan(static_cast<std::size_t>(owner(hop)) * bytes, bytes);
  };
  for (int hop = 1; hop < world; ++hop) {
    const auto in = record(hop);
    const auto ticket =
        ring.shift(record(hop - 1), in, bytes, 1, stream, {hop, owner(hop - 1), owner(hop)});
    try {
      const auto came = ring.wait(ticket, stream);
      if (came.data() != in.data()) memory.copy(in.data(), came, stream);
    } catch (const std::exception& error) {
      // Whoever reads this rank's record must be done before its memory goes away.
      ring.abort(error.what());
      try {
        ring.finish(ticket, stream);
      } catch (const std::exception&) {  // the first error is the one to report
      }
      throw;
    }
    ring.finish(ticket, stream);
  }
}

}  // namespace ringattn
