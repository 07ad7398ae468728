/* SPDX-License-Identifier: Apache-2.0 */
/* The C interface of ringattn: masks, plans and positions for front ends in other languages. The
 * meaning of every argument is in docs/contract.md. Functions return a code and, if it is not
 * RINGATTN_OK, fill `error` (which may be null). Nothing is thrown or printed, nothing aborts. */
#ifndef RINGATTN_RINGATTN_H_
#define RINGATTN_RINGATTN_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RINGATTN_EXPORT __attribute__((visibility("default")))
#else
#define RINGATTN_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct, a function or the operands of a handler change. */
#define RINGATTN_ABI 6

enum {
  RINGATTN_OK = 0,
  RINGATTN_INVALID_ARGUMENT = 1, /* a wrong type, shape or value */
  RINGATTN_UNSUPPORTED = 2,      /* known to the contract, not possible here */
  RINGATTN_COMMUNICATION = 3,    /* a peer was lost, or ranks disagree */
  RINGATTN_INTERNAL = 4          /* a broken invariant of ringattn itself */
};

enum { RINGATTN_F32 = 0, RINGATTN_BF16 = 1, RINGATTN_F16 = 2, RINGATTN_F64 = 3 };
enum { RINGATTN_CONTIGUOUS = 0, RINGATTN_ZIGZAG = 1, RINGATTN_STRIPED = 2 };

/* Bits of ringattn_config.flags. */
enum {
  RINGATTN_SEGMENT_IDS = 1,
  RINGATTN_POSITIONS = 2,   /* explicit ones, int32 */
  RINGATTN_POSITIONS64 = 4, /* ... int64 */
  RINGATTN_SINKS = 8,
  RINGATTN_DLSE = 16, /* the gradient of lse is given */
  RINGATTN_BITMAP = 32,
  RINGATTN_FUSED_BACKWARD = 64,
  RINGATTN_DETERMINISTIC = 128,
  RINGATTN_LSE = 256 /* lse of the forward is used: by a backward, or by the caller */
};

typedef struct ringattn_error {
  int32_t code;
  char message[2044];
} ringattn_error;

/* An attention problem with its options: everything but the batch size, data and the rank. Only
 * 8-byte fields, so that it can travel as an array of them. Lengths are global. */
typedef struct ringattn_config {
  int64_t query_seq, key_seq;
  int64_t query_heads, kv_heads;
  int64_t head_dim, value_dim;
  int64_t dtype;
  int64_t world;
  int64_t layout;
  int64_t left, right, chunk; /* the interval mask; INT64_MAX: unbounded, chunk 0: none */
  double softmax_scale;       /* NaN: head_dim ** -0.5 */
  double logits_soft_cap;     /* NaN: none */
  int64_t fwd_q_blocksize, fwd_kv_blocksize; /* 0: the backend's choice */
  int64_t bwd_q_blocksize, bwd_kv_blocksize;
  int64_t flags;
} ringattn_config;

/* The interval mask that hides nothing. */
#define RINGATTN_UNBOUNDED INT64_MAX

/* ---- masks: values, to be freed ---- */

typedef struct ringattn_mask ringattn_mask;

/* Writes visible[(q - row_begin) * (key_end - key_begin) + (k - key_begin)], 0 or 1. Returns 0, or
 * anything else after a failure, which the caller of ringattn_compile is told of. */
typedef int32_t (*ringattn_fill)(void* context, int64_t head, int64_t row_begin, int64_t row_end,
                                 int64_t key_begin, int64_t key_end, uint8_t* visible);

/* Query q sees key k if q - left <= k <= q + right and, with chunk > 0, both are in one chunk. */
RINGATTN_EXPORT int32_t ringattn_mask_interval(int64_t left, int64_t right, int64_t chunk,
                                               ringattn_mask** mask, ringattn_error* error);
/* Asked tile by tile. `fill` and `context` must outlive the mask. */
RINGATTN_EXPORT int32_t ringattn_mask_lazy(int64_t heads, int64_t query_seq, int64_t key_seq,
                                           ringattn_fill fill, void* context, ringattn_mask** mask,
                                           ringattn_error* error);
RINGATTN_EXPORT int32_t ringattn_mask_and(const ringattn_mask* a, const ringattn_mask* b,
                                          ringattn_mask** mask, ringattn_error* error);
RINGATTN_EXPORT int32_t ringattn_mask_or(const ringattn_mask* a, const ringattn_mask* b,
                                         ringattn_mask** mask, ringattn_error* error);
/* One mask for each head. */
RINGATTN_EXPORT int32_t ringattn_mask_per_head(const ringattn_mask* const* masks, int64_t heads,
                                               int64_t query_seq, int64_t key_seq,
                                               ringattn_mask** mask, ringattn_error* error);
RINGATTN_EXPORT void ringattn_mask_free(ringattn_mask* mask);

/* A mask for given lengths: an interval, and a bitmap of 64 x 64 blocks if that is not all. */
typedef struct ringattn_compiled ringattn_compiled;
RINGATTN_EXPORT int32_t ringattn_compile(const ringattn_mask* mask, int64_t heads,
                                         int64_t query_seq, int64_t key_seq,
                                         ringattn_compiled** compiled, ringattn_error* error);
/* left, right, chunk. */
RINGATTN_EXPORT void ringattn_compiled_interval(const ringattn_compiled* compiled,
                                                int64_t interval[3]);
/* What is where in the bitmap's words: mixed blocks, of 64 rows of 64 bits; the plane of each head;
 * the kind of every block of every plane. Only 8-byte fields. */
typedef struct ringattn_bitmap {
  int64_t heads;
  int64_t query_seq, key_seq;
  int64_t block_rows, block_cols;
  int64_t blocks, mixed;
} ringattn_bitmap;

/* Fills `bitmap` and returns how many words it has, as handlers want it; 0: there is none. */
RINGATTN_EXPORT int64_t ringattn_compiled_bitmap(const ringattn_compiled* compiled,
                                                 ringattn_bitmap* bitmap);
RINGATTN_EXPORT void ringattn_compiled_copy(const ringattn_compiled* compiled, uint32_t* words);
RINGATTN_EXPORT void ringattn_compiled_free(ringattn_compiled* compiled);

/* ---- plans ---- */

/* What a front end must know before it has data. */
typedef struct ringattn_sizes {
  int64_t query_rows, key_rows;          /* of rank 0; every rank's if they divide */
  int64_t forward_state, backward_state; /* floats per batch row, between hops */
  int64_t word_bytes;                    /* of a message: 2 or 4 */
  /* In words, per batch row. A message ends with 4 bytes that say nothing: what they hold must be
   * there before the message can be sent. */
  int64_t value_at, ids_at, positions_at, gate_at, words;
} ringattn_sizes;

/* Checks everything that is known before data. `mask` (may be null: the config's interval). */
RINGATTN_EXPORT int32_t ringattn_plan(const ringattn_config* config, int64_t batch,
                                      const ringattn_compiled* mask, ringattn_sizes* sizes,
                                      ringattn_error* error);

/* One step of one rank; see Step in src/plan.h. */
typedef struct ringattn_step {
  int32_t offset, owner;
  int32_t live, receives, sends;
  int32_t stops; /* the block travels no farther: its dK, dV go home */
} ringattn_step;

/* Every rank's steps, [world][*steps] in `table`, which has room for world * world; they are as
 * many on every rank. */
RINGATTN_EXPORT int32_t ringattn_route(const ringattn_config* config, int64_t batch,
                                       const ringattn_compiled* mask, ringattn_step* table,
                                       int64_t* steps, ringattn_error* error);

/* The positions of the rows that `rank` of `world` holds, in order. Returns how many they are;
 * writes at most `room` of them. */
RINGATTN_EXPORT int64_t ringattn_positions(int64_t layout, int64_t length, int64_t world,
                                           int64_t rank, int64_t* positions, int64_t room);

/* ---- about this build ---- */

RINGATTN_EXPORT int32_t ringattn_abi(void);
RINGATTN_EXPORT const char* ringattn_version(void);
/* The minor version of the XLA FFI headers that the handlers were compiled with. A runtime whose
 * own is smaller must not be given them. */
RINGATTN_EXPORT int32_t ringattn_xla_ffi_minor(void);
/* 1 if there are kernels for NVIDIA GPUs in it. */
RINGATTN_EXPORT int32_t ringattn_has_cuda(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* RINGATTN_RINGATTN_H_ */
