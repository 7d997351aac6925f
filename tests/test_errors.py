"""Which errors say that memory ran out: the texts are those of PyTorch's sources and of its users' reports."""

import pytest
import torch
from torch.distributed import DistBackendError

from src.errors import is_out_of_memory

ASYNCHRONOUS = (
    "CUDA error: {}\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with "
    "`TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda error (run with NCCL_DEBUG=INFO "
    "for details), NCCL version 2.20.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    "Cuda failure {}"
)
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError(ASYNCHRONOUS.format("out of memory")),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
    DistBackendError(NCCL.format("2 'out of memory'")),
    DistBackendError(NCCL.format("'out of memory'")),
    MemoryError(),
]
OTHERS = [
    torch.AcceleratorError(ASYNCHRONOUS.format("an illegal memory access was encountered")),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    DistBackendError(NCCL.format("1 'invalid argument'")),
    RuntimeError("out of resource: shared memory, Required: 180224, Hardware limit: 101376."),
    ValueError("CUDA out of memory"),
]


def test_every_form_of_running_out_of_memory():
    assert [is_out_of_memory(error) for error in FULL] == [True] * len(FULL)
    assert [is_out_of_memory(error) for error in OTHERS] == [False] * len(OTHERS)


def test_the_allocator_of_a_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value) and not isinstance(caught.value, torch.OutOfMemoryError)
