// A device whose memory is the processor's, and whose tensors torch keeps apart from the
// processor's: what a GPU refuses, it refuses too. Every operator runs on the processor.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {

constexpr auto kSecond = c10::DeviceType::PrivateUse1;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = c10::alloc_cpu(bytes);
    return {place, place, &c10::free_cpu, c10::Device(kSecond, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kSecond, &memory);

// One device with one stream, in which all is done at once.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kSecond; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {kSecond, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}

 private:
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<at::CPUGeneratorImpl>();
  }
};

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the processor.
at::Tensor on_cpu(const at::Tensor& x) {
  if (x.is_cpu()) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [keep = x.storage()](void*) {},
                       x.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_(to, from.sizes());
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor& set_all(at::Tensor& x, at::Storage memory) {
  const auto size = static_cast<int64_t>(memory.nbytes() / x.itemsize());
  return at::native::set_storage_cpu_(x, std::move(memory), 0, {size}, {});
}

at::Scalar item(const at::Tensor& x) { return on_cpu(x).item(); }

// Torch leaves convolution to a device of its own.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                       c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, int64_t groups) {
  const bool has_bias = bias.has_value() && bias->defined();
  const auto offset = has_bias ? std::make_optional(on_cpu(*bias)) : std::nullopt;
  return at::convolution(on_cpu(x), on_cpu(weight), offset, stride, padding, dilation, transposed,
                         output_padding, groups)
      .to(x.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  const auto found = at::convolution_backward(
      on_cpu(grad), on_cpu(x), on_cpu(weight), c10::IntArrayRef{weight.size(0)}, stride, padding,
      dilation, transposed, output_padding, groups, wanted);
  const auto there = [&](const at::Tensor& one) {
    return one.defined() ? one.to(x.device()) : one;
  };
  return {there(std::get<0>(found)), there(std::get<1>(found)), there(std::get<2>(found))};
}

// What may be given tensors of two devices, as on a GPU.
bool takes_two(const std::string& name) {
  static const std::set<std::string> names = {"aten::index.Tensor", "aten::index_put_",
                                              "aten::_index_put_impl_", "aten::copy_"};
  return names.count(name) > 0;
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const std::vector<c10::IValue> given(stack->end() - count, stack->end());
  bool has_second = false, has_cpu = false, grows = false;
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    const auto look = [&](const at::Tensor& x) {
      if (!x.defined()) return;
      has_second |= x.device().type() == kSecond;
      grows |= is_written && (x.numel() == 0 || schema.arguments()[i].kwarg_only());
      // A number that lies on the processor may meet any tensor, but cannot hold its sum.
      has_cpu |= x.is_cpu() && (x.dim() > 0 || is_written);
    };
    if (given[i].isTensor()) look(given[i].toTensor());
    if (given[i].isTensorList())
      for (const at::Tensor& x : given[i].toTensorVector()) look(x);
  }
  TORCH_CHECK(!(has_second && has_cpu) || takes_two(schema.name()),
              "Expected all tensors to be on the same device, but ", schema.name(),
              " found the processor's and the second device's.");
  if (grows) {
    at::native::cpu_fallback(op, stack);
    return;
  }

  // The same memory, so that what an operator changes is changed here.
  const c10::Device there(kSecond, 0);
  for (size_t i = 0; i < count; ++i) {
    c10::IValue& one = (*stack)[stack->size() - count + i];
    if (one.isTensor()) {
      if (one.toTensor().defined()) one = on_cpu(one.toTensor());
    } else if (one.isTensorList()) {
      auto list = one.toTensorVector();
      for (at::Tensor& x : list) x = on_cpu(x);
      one = list;
    } else if (one.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& x : one.toOptionalTensorVector())
        list.push_back(x.has_value() && x->defined() ? std::make_optional(on_cpu(*x)) : x);
      one = list;
    } else if (one.isDevice()) {
      one = c10::Device(c10::kCPU);
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);

  const size_t results = schema.returns().size();
  for (size_t i = 0; i < results; ++i) {
    c10::IValue& one = (*stack)[stack->size() - results + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      for (size_t j = 0; j < count; ++j) {
        const auto* source = schema.arguments()[j].alias_info();
        if (source != nullptr && *source == *alias) one = given[j];
      }
    } else if (one.isTensor()) {
      if (one.toTensor().defined()) one = one.toTensor().to(there);
    } else if (one.isTensorList()) {
      auto list = one.toTensorVector();
      for (at::Tensor& x : list) x = x.to(there);
      one = list;
    }
  }
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Storage", set_all);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  // Torch's own way for new devices gives these an output of another shape.
  m.impl("mse_loss", torch::CppFunction::makeFromBoxedFunction<&run>());
  m.impl("smooth_l1_loss", torch::CppFunction::makeFromBoxedFunction<&run>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
}

const bool has_hooks = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

}  // namespace
