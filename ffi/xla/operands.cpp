// SPDX-License-Identifier: Apache-2.0
#include "xla/operands.h"

#include <algorithm>
#include <cstring>

namespace ringattn::ffi {
namespace {

[[noreturn]] void broken(const std::string& message) {
  throw Error(ErrorCode::kInternal, "ringattn's XLA handler: " + message);
}

struct Element {
  DType dtype;
  std::int64_t bytes;
};

/// Unsigned words of a message only have a width.
Element element_of(const char* name, xla::ffi::DataType type) {
  switch (type) {
    case xla::ffi::DataType::F32: return {DType::kFloat32, 4};
    case xla::ffi::DataType::BF16: return {DType::kBFloat16, 2};
    case xla::ffi::DataType::F16: return {DType::kFloat16, 2};
    case xla::ffi::DataType::F64: return {DType::kFloat64, 8};
    case xla::ffi::DataType::S32:
    case xla::ffi::DataType::U32: return {DType::kInt32, 4};
    case xla::ffi::DataType::S64: return {DType::kInt64, 8};
    case xla::ffi::DataType::U16: return {DType::kBFloat16, 2};
    default: broken(std::string(name) + " has an unexpected dtype");
  }
}

}  // namespace

Operand::Operand(const char* name, Device device, const xla::ffi::AnyBuffer& buffer,
                 std::size_t lead, std::size_t rank)
    : data_(static_cast<std::byte*>(buffer.untyped_data())), device_(device), lead_(lead) {
  const auto dims = buffer.dimensions();
  if (dims.size() != lead + rank) {
    broken(std::string(name) + " has " + std::to_string(dims.size()) + " dimensions, expected " +
           std::to_string(lead) + " + " + std::to_string(rank));
  }
  dims_.assign(dims.begin(), dims.end());
  const Element element = element_of(name, buffer.element_type());
  dtype_ = element.dtype;
  width_ = element.bytes;
  for (std::size_t d = lead; d < dims_.size(); ++d) elements_ *= dims_[d];
}

void* Operand::data(const std::vector<std::int64_t>& at) const {
  std::int64_t index = 0;
  for (std::size_t d = 0; d < lead_; ++d) {
    index = index * dims_[d] + (dims_[d] == 1 ? 0 : at[d]);
  }
  return data_ + index * elements_ * width_;
}

void Operand::fill_with_nan() const {
  std::int64_t count = width_;
  for (const std::int64_t n : dims_) count *= n;
  std::memset(data_, 0xFF, static_cast<std::size_t>(count));
}

TensorView Operand::view(const std::vector<std::int64_t>& at) const {
  TensorView view;
  if (!present()) return view;
  view.data = data(at);
  view.dtype = dtype_;
  view.device = device_;
  view.rank = static_cast<int>(dims_.size() - lead_);
  std::int64_t stride = 1;
  for (std::size_t d = dims_.size() - lead_; d-- > 0;) {
    view.shape[d] = dims_[lead_ + d];
    view.strides[d] = stride;
    stride *= dims_[lead_ + d];
  }
  return view;
}

Operands::Operands(Device device, xla::ffi::RemainingArgs args, xla::ffi::RemainingRets rets)
    : device_(device), args_(args), rets_(rets) {
  // The first operand is the query, [..., B, Sq, H, D].
  const auto query = args_.get<xla::ffi::AnyBuffer>(0);
  if (!query.has_value() || query->dimensions().size() < 4) broken("expected a query");
  sizes_.assign(query->dimensions().size() - 4, 1);
}

Operand Operands::take(const char* name, std::size_t rank) {
  const auto buffer = args_.get<xla::ffi::AnyBuffer>(taken_++);
  if (!buffer.has_value()) broken(std::string("no operand ") + name);
  Operand operand(name, device_, *buffer, lead(), rank);
  for (std::size_t d = 0; d < lead(); ++d) {
    const std::int64_t size = operand.dims()[d];
    if (sizes_[d] != size && sizes_[d] != 1 && size != 1) broken(std::string(name) + ": batches");
    if (size != 1) sizes_[d] = size;
  }
  return operand;
}

Operand Operands::take_common_if(bool there, const char* name) {
  if (!there) return {};
  const auto buffer = args_.get<xla::ffi::AnyBuffer>(taken_++);
  if (!buffer.has_value()) broken(std::string("no operand ") + name);
  return Operand(name, device_, *buffer, 0, 0);
}

Operand Operands::next_result(const char* name, std::size_t lead, std::size_t rank) {
  auto buffer = rets_.get<xla::ffi::AnyBuffer>(given_++);
  if (!buffer.has_value()) broken(std::string("no result ") + name);
  Operand operand(name, device_, **buffer, lead, rank);
  for (std::size_t d = 0; d < lead; ++d) {
    if (operand.dims()[d] != sizes_[d]) broken(std::string(name) + ": batches of the result");
  }
  return operand;
}

void Operands::finish() const {
  if (taken_ != args_.size() || given_ != rets_.size()) {
    broken("got " + std::to_string(args_.size()) + " operands and " + std::to_string(rets_.size()) +
           " results, expected " + std::to_string(taken_) + " and " + std::to_string(given_));
  }
}

}  // namespace ringattn::ffi
