// The coefficients of the matching loss and their derivatives (formulas: csrc/coefficients.h), a launch each.
#pragma once

#include "lines.h"

namespace l2t_fast::cuda {

// A pair's columns of alpha are scale * where * what, in their places of the three.
struct PairColumns {
  int64_t begin;     // the first of them
  int32_t channels;  // how many
  float scale;
};

// They travel as a kernel's parameters, as many at a time as these hold: in 4 KB, or in 32 KB.
inline constexpr int few_pairs = 200, many_pairs = 1900;

template <int capacity>
struct SomePairs {
  PairColumns items[capacity];
  int32_t count, number;  // of them; of the first one among all of the call
  int64_t columns;        // of all of them
};

// One product of weights. Null stands for ones.
struct CoefficientTerm {
  const float* what;     // (batch, columns)
  const float* where;    // (batch, pairs)
  int64_t where_stride;  // from sample to sample: 0 where all have the same
};

struct CoefficientCall {
  CoefficientTerm terms[2];  // the derivatives are of the first
  int32_t term_count;
  int32_t pairs;  // of the whole call
  int64_t batch, columns;
  float* result;         // (batch, columns): the sum of the terms
  const float* adjoint;  // (batch, columns): null, or the derivatives along it are wanted
  float* of_what;        // (batch, columns), and
  float* of_where;       // (batch, pairs): null where nobody wants them
};

template <class M>
L2T_FAST_KERNEL float where_at(M& m, const CoefficientTerm& term, int64_t sample, int pair) {
  return term.where ? m.read(term.where + sample * term.where_stride + pair) : 1.f;
}

// Items: an element of the pairs' columns a thread.
template <class M, int capacity>
L2T_FAST_KERNEL void sum_terms(M& m, const SomePairs<capacity>& pairs, const CoefficientCall& call, int64_t element) {
  if (element >= call.batch * pairs.columns) return;
  const int64_t sample = element / pairs.columns;
  const int64_t column = pairs.items[0].begin + (element - sample * pairs.columns);
  const int own = last_that_begins(0, pairs.count, [&](int p) { return pairs.items[p].begin <= column; });
  const int64_t at = sample * call.columns + column;
  const float scale = pairs.items[own].scale;
  float sum = 0;
  for (int t = 0; t < call.term_count; ++t) {
    const CoefficientTerm& term = call.terms[t];
    const float where = where_at(m, term, sample, pairs.number + own) * scale;
    sum += term.what ? where * m.read(term.what + at) : where;
  }
  call.result[at] = sum;
}

// Items: a sample and pair a warp. The sum over channels has a fixed order.
template <class M, int capacity>
L2T_FAST_KERNEL void differentiate_term(M& m, const SomePairs<capacity>& pairs, const CoefficientCall& call,
                                        int64_t item) {
  if (item >= call.batch * pairs.count) return;
  const int64_t sample = item / pairs.count;
  const int own = int(item - sample * pairs.count), pair = pairs.number + own;
  const int64_t first = sample * call.columns + pairs.items[own].begin;
  const CoefficientTerm& term = call.terms[0];
  const float scale = pairs.items[own].scale, factor = where_at(m, term, sample, pair) * scale;
  const int channels = pairs.items[own].channels;
  constexpr int at_once = 4;  // are read before the first is used: each would be waited for
  float sum = 0;
  for (int begin = m.thread() % 32; begin < channels; begin += 32 * at_once) {
    float adjoints[at_once], whats[at_once];
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) {
      const int64_t at = first + (begin + 32 * k < channels ? begin + 32 * k : begin);
      adjoints[k] = m.read(call.adjoint + at);
      whats[k] = call.of_where && term.what ? m.read(term.what + at) : 1.f;
    }
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) {
      if (begin + 32 * k >= channels) break;
      if (call.of_what) call.of_what[first + begin + 32 * k] = factor * adjoints[k];
      sum += adjoints[k] * whats[k];
    }
  }
  if (!call.of_where) return;
  for (int mask = 16; mask > 0; mask /= 2) sum += m.exchange(sum, mask);
  if (m.thread() % 32 == 0) call.of_where[sample * call.pairs + pair] = sum * scale;
}

template <class M, int capacity>
L2T_FAST_KERNEL void coefficients(M& m, const SomePairs<capacity>& pairs, const CoefficientCall& call) {
  const int64_t number = int64_t(m.block()) * threads + m.thread();
  if (call.adjoint)
    differentiate_term(m, pairs, call, number / 32);
  else
    sum_terms(m, pairs, call, number);
}

template <int capacity>
SomePairs<capacity> some_of(const PairColumns* pairs, int number, int count) {
  SomePairs<capacity> some;
  for (int i = 0; i < count; ++i) some.items[i] = pairs[number + i];
  some.count = count;
  some.number = number;
  some.columns = some.items[count - 1].begin + some.items[count - 1].channels - some.items[0].begin;
  return some;
}

// launch(pairs, blocks) for all of the call's pairs.
template <class Launch>
void for_some_pairs_at_a_time(const PairColumns* pairs, const CoefficientCall& call, const Launch& launch) {
  const auto run = [&](const auto& some) {
    const int64_t items = call.batch * (call.adjoint ? some.count * int64_t(32) : some.columns);
    launch(some, int((items + threads - 1) / threads));
  };
  for (int number = 0; number < call.pairs; number += many_pairs) {
    const int left = call.pairs - number, count = left < many_pairs ? left : many_pairs;
    if (count <= few_pairs)
      run(some_of<few_pairs>(pairs, number, count));
    else
      run(some_of<many_pairs>(pairs, number, count));
  }
}

}  // namespace l2t_fast::cuda
