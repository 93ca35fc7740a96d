// The CPU build of torch has no device guard for CUDA, without which tensors of an absent GPU cannot even be described.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

struct CompileOnlyGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

C10_REGISTER_GUARD_IMPL(CUDA, CompileOnlyGuard);

}  // namespace
