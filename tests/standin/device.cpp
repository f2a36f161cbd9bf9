// A device that stands in for a GPU: its memory is the host's and its kernels are the CPU's, but its tensors say that
// they are elsewhere. An operator that is given tensors of both devices fails, as on CUDA. It counts what costs time or
// memory on a real one, can be without float64, and can run out of memory. See device.py.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <set>

namespace {
using at::Tensor;
constexpr auto STANDIN = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(STANDIN, 0);

// -- what is counted, and how it can fail ----------------------------------------------------------------------------

struct Counts {
  std::atomic<int64_t> kernels{0}, syncs{0}, to_device{0}, to_host{0}, bytes{0}, peak_bytes{0}, allocations{0};
} counts;
std::atomic<int64_t> fails_at{-1};  // the allocation for which there is no memory, counted from now
bool has_double = true;

void check_type(at::ScalarType type) {
  TORCH_CHECK_TYPE(has_double || type != at::kDouble, "standin has no float64");
}

// -- memory: a header before each block keeps its size ---------------------------------------------------------------

constexpr size_t HEADER = 64;

void release(void* pointer) {
  if (pointer == nullptr) return;
  char* block = static_cast<char*>(pointer) - HEADER;
  counts.bytes -= *reinterpret_cast<int64_t*>(block);
  c10::free_cpu(block);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &release, DEVICE};
    counts.allocations++;
    if (fails_at > 0 && --fails_at == 0) {
      fails_at = -1;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "standin out of memory. Tried to allocate ", size, " bytes.");
    }
    char* block = static_cast<char*>(c10::alloc_cpu(size + HEADER));
    *reinterpret_cast<int64_t*>(block) = static_cast<int64_t>(size);
    counts.bytes += static_cast<int64_t>(size);
    counts.peak_bytes = std::max<int64_t>(counts.peak_bytes, counts.bytes);
    return {block + HEADER, block + HEADER, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
} allocator;

// -- what torch asks of a device: there is one, and its streams do nothing -------------------------------------------

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto pointer = allocator.allocate(size);
    std::memcpy(pointer.get(), storage.data(), std::min(size, storage.nbytes()));
    auto& changed = const_cast<c10::Storage&>(storage);
    changed.set_data_ptr_noswap(std::move(pointer));
    changed.set_nbytes(size);
  }
} hooks;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return STANDIN; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// -- tensors ---------------------------------------------------------------------------------------------------------

bool here(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == STANDIN; }

// The same memory as a tensor of the host.
Tensor as_host(const Tensor& tensor) {
  auto options = tensor.options().device(c10::kCPU).requires_grad(false);
  at::AutoDispatchBelowADInplaceOrView below;
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

Tensor empty_memory_format(
    at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  auto type = c10::dtype_or_default(dtype);
  check_type(type);
  return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type, format);
}

Tensor empty_strided(
    at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  auto type = c10::dtype_or_default(dtype);
  check_type(type);
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(sizes, strides, &allocator, keys, type);
}

Tensor as_device(const Tensor& tensor) {
  Tensor made = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  if (tensor.numel()) as_host(made).copy_(tensor);
  return made;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (here(from) && !here(to)) counts.to_host++, counts.syncs++;
  if (here(to) && !here(from)) counts.to_device++;
  (here(to) ? as_host(to) : to).copy_(here(from) ? as_host(from) : from);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.numel() == 0 && from.numel()) const_cast<Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

c10::Scalar local_scalar_dense(const Tensor& tensor) {
  counts.syncs++;
  return as_host(tensor).item();
}

const Tensor& resize_(const Tensor& tensor, at::IntArrayRef sizes, std::optional<at::MemoryFormat>) {
  int64_t count = 1;
  for (auto size : sizes) count *= size;
  const size_t needed = (count + tensor.storage_offset()) * tensor.element_size();
  if (tensor.storage().nbytes() < needed) hooks.resizePrivateUse1Bytes(tensor.storage(), needed);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

Tensor& set_at(Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef sizes, at::IntArrayRef strides) {
  auto* changed = tensor.unsafeGetTensorImpl();
  changed->set_storage_keep_dtype(std::move(storage));
  changed->set_storage_offset(offset);
  changed->set_sizes_and_strides(sizes, strides);
  return tensor;
}

Tensor& set_storage(Tensor& tensor, at::Storage storage) {
  const int64_t count = storage.nbytes() / tensor.element_size(), one = 1;
  return set_at(tensor, storage, 0, {&count, 1}, {&one, 1});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& source) {
  return set_at(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// -- every other operator: the CPU's kernel on the same memory -------------------------------------------------------

// The host learns the size of what they return, or a number; CUDA waits there.
const std::set<std::string> WAITS = {
    "aten::nonzero", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::masked_select",
    "aten::repeat_interleave.Tensor", "aten::is_nonzero"};
// Their indices may lie on the host; CUDA copies them.
const std::set<std::string> INDEX = {
    "aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};

void kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = c10::toString(op.operator_name());
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  const bool index = INDEX.count(name) > 0;
  std::vector<std::pair<Tensor, Tensor>> lent;  // a tensor of the device, and its memory as the host's
  counts.kernels++;
  if (WAITS.count(name)) counts.syncs++;

  for (size_t at = 0; at < schema.arguments().size(); at++) {
    const auto& argument = schema.arguments()[at].name();
    auto lend = [&](const Tensor& tensor) -> Tensor {
      if (here(tensor)) {
        const bool mask = argument == "indices" && tensor.scalar_type() == at::kBool;
        if (mask && name == "aten::_index_put_impl_") counts.syncs++;  // others call nonzero themselves
        lent.emplace_back(tensor, as_host(tensor));
        return lent.back().second;
      }
      if (!tensor.defined() || tensor.dim() == 0) return tensor;
      TORCH_CHECK(
          index && argument == "indices",
          "Expected all tensors to be on the same device, but found at least two devices, standin:0 and cpu! (",
          argument, " of ", name, ", of shape ", tensor.sizes(), ")");
      counts.to_device++;
      return tensor;
    };
    auto& value = (*stack)[first + at];
    if (value.isTensor()) {
      value = c10::IValue(lend(value.toTensor()));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(lend(tensor));
      value = c10::IValue(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const auto& tensor : value.toOptionalTensorVector())
        list.push_back(tensor.has_value() ? std::optional<Tensor>(lend(*tensor)) : std::nullopt);
      value = c10::IValue(list);
    } else if (value.isDevice()) {
      value = c10::IValue(c10::Device(c10::kCPU));
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);

  auto give_back = [&](const Tensor& tensor) -> Tensor {
    if (!tensor.defined() || here(tensor)) return tensor;
    for (auto& [mine, host] : lent) {
      if (host.is_same(tensor)) {  // written in place, perhaps to another size
        if (mine.sizes() != tensor.sizes()) {
          resize_(mine, tensor.sizes(), {});
          mine.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
          as_host(mine).copy_(tensor);
        }
        return mine;
      }
    }
    for (auto& [mine, host] : lent) {  // a view
      const bool shares = tensor.numel() && host.numel() && tensor.storage().nbytes() == host.storage().nbytes() &&
                          tensor.storage().data_ptr().get() == host.storage().data_ptr().get();
      if (shares) {
        const auto offset = mine.storage_offset() + tensor.storage_offset();
        return at::as_strided(mine, tensor.sizes(), tensor.strides(), offset);
      }
    }
    return as_device(tensor);
  };
  for (size_t at = stack->size() - schema.returns().size(); at < stack->size(); at++) {
    auto& value = (*stack)[at];
    if (value.isTensor()) {
      value = c10::IValue(give_back(value.toTensor()));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(give_back(tensor));
      value = c10::IValue(list);
    }
  }
}

// -- what Python calls -----------------------------------------------------------------------------------------------

c10::Dict<std::string, int64_t> read_counts() {
  c10::Dict<std::string, int64_t> read;
  read.insert("kernels", counts.kernels);
  read.insert("syncs", counts.syncs);
  read.insert("to_device", counts.to_device);
  read.insert("to_host", counts.to_host);
  read.insert("bytes", counts.bytes);
  read.insert("peak_bytes", counts.peak_bytes);
  read.insert("allocations", counts.allocations);
  return read;
}

void reset_counts() {
  counts.kernels = counts.syncs = counts.to_device = counts.to_host = counts.allocations = 0;
  counts.peak_bytes = counts.bytes.load();
}

void set_has_double(bool has) { has_double = has; }
void set_fails_at(int64_t allocation) { fails_at = allocation; }

const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(STANDIN, &allocator);
  return true;
}();
}  // namespace

TORCH_LIBRARY(standin, m) {
  m.def("counts", &read_counts);
  m.def("reset", &reset_counts);
  m.def("has_double", &set_has_double);
  m.def("fail_at", &set_fails_at);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernel>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("resize_", &resize_);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage_storage_offset", &set_at);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  // torch would take these apart into others for a device that it does not know.
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& op : dispatcher.getAllOpNames()) {
    const auto handle = dispatcher.findOp(op);
    auto has = [&](c10::DispatchKey key) { return handle->hasKernelForDispatchKey(key); };
    const bool composed =
        has(c10::DispatchKey::CompositeExplicitAutograd) || has(c10::DispatchKey::CompositeImplicitAutograd);
    const bool own = has(c10::DispatchKey::CPU) || op.name.rfind("aten::_foreach_", 0) == 0 ||
                     op.name == "aten::convolution" || op.name == "aten::convolution_backward";
    if (op.name.rfind("aten::", 0) == 0 && composed && own && op.overload_name.find("out") == std::string::npos) {
      const auto name = c10::toString(op).substr(6);
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&kernel>());
    }
  }
}
