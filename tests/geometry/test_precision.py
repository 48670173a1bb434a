"""The block of full precision: what holds inside, and that the user's choice comes back."""

import pytest
import torch

from prior3d.geometry import full_precision

CPU = torch.device("cpu")
NEWER = hasattr(torch.backends, "fp32_precision")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_inside_keep_all_bits_and_the_users_choice_returns(precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            product = a @ b
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert product.dtype == torch.float32
    assert (product - (a.double() @ b.double())).abs().max() < 5e-5


def test_an_error_inside_puts_the_users_choice_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="inside"), full_precision(CPU):
            raise RuntimeError("inside")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not NEWER, reason="torch has no precision per backend yet")
def test_the_precision_of_single_backends_returns() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with full_precision(CPU):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert [backend.fp32_precision for backend in backends] == ["tf32", before[1]]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
