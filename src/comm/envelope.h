// SPDX-License-Identifier: Apache-2.0
// What goes before the bytes of a transfer, so that a stale or lost block is an error and never a
// wrong result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ringattn/communicator.h"
#include "ringattn/error.h"

namespace ringattn {

/// Fixed size, no padding: rings between processes send it as it is.
struct Envelope {
  std::int32_t sender = -1;
  std::int32_t hop = 0;
  std::int32_t owner = 0;             // the rank whose block it is
  std::uint32_t magic = 0x676E6972U;  // "ring"
  std::int64_t number = 0;            // of the transfer, counted per (sender, receiver)
  std::uint64_t bytes = 0;

  friend bool operator==(const Envelope&, const Envelope&) = default;
};

inline Envelope envelope(int sender, int hop, int owner, std::int64_t number, std::size_t bytes) {
  Envelope e;
  e.sender = sender;
  e.hop = hop;
  e.owner = owner;
  e.number = number;
  e.bytes = bytes;
  return e;
}

inline std::string to_string(const Envelope& e) {
  return std::to_string(e.bytes) + " bytes of the block of rank " + std::to_string(e.owner) +
         " at hop " + std::to_string(e.hop) + " (transfer " + std::to_string(e.number) +
         " from rank " + std::to_string(e.sender) + ")";
}

/// Throws kCommunication, on the rank that notices, with both.
inline void require_equal(const Envelope& came, const Envelope& expected, int rank) {
  if (came == expected) return;
  throw Error(ErrorCode::kCommunication, "rank " + std::to_string(rank) + " expected " +
                                             to_string(expected) + ", got " + to_string(came));
}

}  // namespace ringattn
