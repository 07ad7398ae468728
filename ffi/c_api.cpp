// SPDX-License-Identifier: Apache-2.0
// The functions of ringattn.h but for the XLA handlers.
#include <memory>
#include <vector>

#include "backend.h"
#include "convert.h"
#include "ringattn/version.h"

using namespace ringattn;
using ringattn::ffi::guarded;

struct ringattn_mask {
  Mask mask;
};

struct ringattn_compiled {
  CompiledMask mask;
};

namespace {

void give(ringattn_mask** out, Mask mask) { *out = new ringattn_mask{std::move(mask)}; }

/// The plan of rank 0; with the compiled mask if there is one.
Plan plan_of(const ringattn_config& config, std::int64_t batch, const ringattn_compiled* mask) {
  const Problem problem = ffi::problem_of(config, batch);
  const Options options = ffi::options_of(config);
  const int world = static_cast<int>(config.world);
  if (mask == nullptr) return Plan(problem, options, 0, world, true);
  return Plan(problem, options, mask->mask, 0, world, true);
}

}  // namespace

int32_t ringattn_mask_interval(int64_t left, int64_t right, int64_t chunk, ringattn_mask** mask,
                               ringattn_error* error) {
  return guarded(error, [&] { give(mask, Mask::of({left, right, chunk})); });
}

int32_t ringattn_mask_lazy(int64_t heads, int64_t query_seq, int64_t key_seq, ringattn_fill fill,
                           void* context, ringattn_mask** mask, ringattn_error* error) {
  return guarded(error, [&] {
    const auto filler = [=](std::int64_t head, Range rows, Range keys, std::uint8_t* visible) {
      if (fill(context, head, rows.begin, rows.end, keys.begin, keys.end, visible) != 0) {
        throw Error(ErrorCode::kInvalidArgument, "mask: its function failed");
      }
    };
    give(mask, Mask::lazy(heads, query_seq, key_seq, filler));
  });
}

int32_t ringattn_mask_and(const ringattn_mask* a, const ringattn_mask* b, ringattn_mask** mask,
                          ringattn_error* error) {
  return guarded(error, [&] { give(mask, a->mask & b->mask); });
}

int32_t ringattn_mask_or(const ringattn_mask* a, const ringattn_mask* b, ringattn_mask** mask,
                         ringattn_error* error) {
  return guarded(error, [&] { give(mask, a->mask | b->mask); });
}

int32_t ringattn_mask_per_head(const ringattn_mask* const* masks, int64_t heads, int64_t query_seq,
                               int64_t key_seq, ringattn_mask** mask, ringattn_error* error) {
  return guarded(error, [&] {
    std::vector<Mask> list;
    for (int64_t h = 0; h < heads; ++h) list.push_back(masks[h]->mask);
    give(mask, Mask::per_head(list, query_seq, key_seq));
  });
}

void ringattn_mask_free(ringattn_mask* mask) { delete mask; }

int32_t ringattn_compile(const ringattn_mask* mask, int64_t heads, int64_t query_seq,
                         int64_t key_seq, ringattn_compiled** compiled, ringattn_error* error) {
  return guarded(error, [&] {
    *compiled = new ringattn_compiled{compile(mask->mask, heads, query_seq, key_seq)};
  });
}

void ringattn_compiled_interval(const ringattn_compiled* compiled, int64_t interval[3]) {
  interval[0] = compiled->mask.interval.left;
  interval[1] = compiled->mask.interval.right;
  interval[2] = compiled->mask.interval.chunk;
}

int64_t ringattn_compiled_bitmap(const ringattn_compiled* compiled, ringattn_bitmap* bitmap) {
  const BlockBitmap* there = compiled->mask.bitmap.get();
  *bitmap = there == nullptr ? ringattn_bitmap{} : ffi::describe_bitmap(*there);
  return ffi::bitmap_words(*bitmap);
}

void ringattn_compiled_copy(const ringattn_compiled* compiled, uint32_t* words) {
  if (compiled->mask.bitmap != nullptr) ffi::write_bitmap(*compiled->mask.bitmap, words);
}

void ringattn_compiled_free(ringattn_compiled* compiled) { delete compiled; }

int32_t ringattn_plan(const ringattn_config* config, int64_t batch, const ringattn_compiled* mask,
                      ringattn_sizes* sizes, ringattn_error* error) {
  return guarded(error, [&] {
    plan_of(*config, batch, mask);               // the checks, with the caller's numbers
    const Plan one = plan_of(*config, 1, mask);  // sizes of one batch row
    const auto floats = [&](Pass pass) {
      return static_cast<int64_t>(one.backend().state_bytes(one, pass) / sizeof(float));
    };
    const int64_t keys = one.key_rows(0).size();
    const ffi::MessageLayout m = ffi::message_layout(*config, keys);
    *sizes = {one.query_rows(0).size(),
              keys,
              floats(Pass::kForward),
              floats(Pass::kBackward),
              m.word_bytes,
              m.value,
              m.ids,
              m.positions,
              m.gate,
              m.words};
  });
}

int32_t ringattn_route(const ringattn_config* config, int64_t batch, const ringattn_compiled* mask,
                       ringattn_step* table, int64_t* steps, ringattn_error* error) {
  return guarded(error, [&] {
    const Plan plan = plan_of(*config, batch, mask);
    const LiveMatrix live = plan.live_matrix();
    for (int rank = 0; rank < plan.world(); ++rank) {
      const Route route = make_route(live, rank);
      *steps = static_cast<int64_t>(route.steps.size());
      for (std::size_t s = 0; s < route.steps.size(); ++s) {
        const Step& step = route.steps[s];
        *table++ = {step.offset,   step.owner, step.live,
                    step.receives, step.sends, route.stops_here(s)};
      }
    }
  });
}

int64_t ringattn_positions(int64_t layout, int64_t length, int64_t world, int64_t rank,
                           int64_t* out, int64_t room) {
  if (layout < RINGATTN_CONTIGUOUS || layout > RINGATTN_STRIPED || length < 0 || world < 1 ||
      rank < 0 || rank >= world) {
    return -1;
  }
  const Positions rows = positions(ffi::layout_of(layout), length, world, rank);
  for (int64_t i = 0; i < rows.size() && i < room; ++i) out[i] = rows(i);
  return rows.size();
}

int32_t ringattn_abi(void) { return RINGATTN_ABI; }
const char* ringattn_version(void) { return RINGATTN_VERSION; }
