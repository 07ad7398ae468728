// SPDX-License-Identifier: Apache-2.0
// From the C interface's structs to the library's, and from its exceptions to codes. The only
// place that knows both.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <string_view>

#include "bitmap.h"
#include "plan.h"
#include "ringattn.h"
#include "ringattn/attention.h"

namespace ringattn::ffi {

Problem problem_of(const ringattn_config& config, std::int64_t batch);

/// Without bitmap and executor.
Options options_of(const ringattn_config& config);

Layout layout_of(std::int64_t layout);

/// A bitmap's three arrays as one of 32-bit words, which may lie where the host cannot read them;
/// and the numbers that say what is where.
ringattn_bitmap describe_bitmap(const BlockBitmap& bitmap);
std::int64_t bitmap_words(const ringattn_bitmap& bitmap);
void write_bitmap(const BlockBitmap& bitmap, std::uint32_t* words);

/// Borrows `count` words that write_bitmap wrote. Throws kInvalidArgument if they cannot be that.
BitmapView read_bitmap(const ringattn_bitmap& bitmap, const std::uint32_t* words,
                       std::int64_t count);

/// Where the parts of one batch row of a travelling message begin, in words. K, V, segment ids
/// and positions of one batch row lie together, so that messages of several can be one array. The
/// gate only makes a message depend on something.
struct MessageLayout {
  std::int64_t word_bytes = 4;
  std::int64_t value = 0, ids = 0, positions = 0, gate = 0, words = 0;
};
MessageLayout message_layout(const ringattn_config& config, std::int64_t key_rows);

/// Fills `error` and returns its code.
std::int32_t report(ringattn_error* error, std::int32_t code, std::string_view message) noexcept;

/// Runs `work` and turns what it throws into a code.
template <class Work>
std::int32_t guarded(ringattn_error* error, Work work) noexcept {
  try {
    work();
    return report(error, RINGATTN_OK, "");
  } catch (const Error& e) {
    return report(error, static_cast<std::int32_t>(e.code()) + 1, e.what());
  } catch (const std::bad_alloc&) {
    return report(error, RINGATTN_INTERNAL, "out of memory");
  } catch (const std::exception& e) {
    return report(error, RINGATTN_INTERNAL, e.what());
  } catch (...) {
    return report(error, RINGATTN_INTERNAL, "an unknown exception");
  }
}

static_assert(static_cast<int>(ErrorCode::kInvalidArgument) + 1 == RINGATTN_INVALID_ARGUMENT);
static_assert(static_cast<int>(ErrorCode::kUnsupported) + 1 == RINGATTN_UNSUPPORTED);
static_assert(static_cast<int>(ErrorCode::kCommunication) + 1 == RINGATTN_COMMUNICATION);
static_assert(static_cast<int>(ErrorCode::kInternal) + 1 == RINGATTN_INTERNAL);

}  // namespace ringattn::ffi
