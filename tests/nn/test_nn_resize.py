import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from tolerances import RESIZE_FLOAT64, SAME_FLOAT32

from fmi_jax.nn import resize

LENGTHS = st.integers(1, 67)


def bilinear_antialias(old: int, new: int) -> np.ndarray:
    """`F.interpolate(mode="bilinear", antialias=True)` along one axis: another kernel than ours."""
    kernel = lambda x: np.maximum(1 - np.abs(x), 0)  # noqa: E731
    return resize._antialias(old, new, old / new, kernel, support=1.0)


def torch_matrix(old: int, **options) -> np.ndarray:
    """What PyTorch makes of the identity when only its rows are resized: its own matrix."""
    image = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(image, align_corners=False, **options)[0, 0].numpy()


@settings(max_examples=60)
@given(old=LENGTHS, new=LENGTHS)
def test_kernels_are_those_of_torch(old, new):
    step = old / new
    for ours, mode, antialias in (
        (resize.bicubic(old, new, step=step), "bicubic", False),
        (resize.bicubic_antialias(old, new, step=step), "bicubic", True),
        (resize.linear(old, new), "bilinear", False),
        (bilinear_antialias(old, new), "bilinear", True),
    ):
        expected = torch_matrix(old, size=(new, old), mode=mode, antialias=antialias)
        np.testing.assert_allclose(
            ours, expected, rtol=0, atol=RESIZE_FLOAT64, err_msg=f"{mode} antialias={antialias}"
        )


@settings(max_examples=60)
@given(old=st.integers(1, 300), new=st.integers(1, 300))
def test_nearest_picks_the_samples_that_torch_picks(old, new):
    rows = torch.arange(old, dtype=torch.float32).reshape(1, 1, old)
    expected = F.interpolate(rows, size=new, mode="nearest")[0, 0].numpy()
    np.testing.assert_array_equal(resize.nearest(old, new) @ np.arange(old), expected)


@pytest.mark.parametrize(
    ("old", "new"), [((3, 5), (6, 10)), ((3, 2), (5, 4)), ((5, 4), (9, 4)), ((3, 2), (5, 7))]
)
def test_an_enlarged_map_and_its_gradient_are_those_of_torch(old, new):
    """Twice the size, one less than that, and sizes that are no multiple."""
    rng = np.random.default_rng(3)
    grid, cotangent = (rng.normal(size=(2, *n, 3)).astype(np.float32) for n in (old, new))
    theirs = torch.tensor(grid).permute(0, 3, 1, 2).requires_grad_(True)
    expected = F.interpolate(theirs, size=new, mode="nearest")
    expected.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    ours, backward = jax.vjp(lambda x: resize.enlarge(x, *new), jnp.asarray(grid))
    np.testing.assert_array_equal(ours, expected.detach().permute(0, 2, 3, 1))
    expected_gradient = theirs.grad.permute(0, 2, 3, 1)
    np.testing.assert_allclose(backward(cotangent)[0], expected_gradient, atol=SAME_FLOAT32)


@settings(max_examples=60)
@given(old=st.integers(1, 40), new=st.integers(1, 9))
def test_adaptive_means_are_those_of_torch(old, new):
    expected = F.adaptive_avg_pool1d(torch.eye(old, dtype=torch.float64), new).T.numpy()
    np.testing.assert_allclose(resize.adaptive(old, new), expected, atol=RESIZE_FLOAT64)


@settings(max_examples=40)
@given(old=st.integers(2, 40), new=st.integers(1, 40), antialias=st.booleans())
def test_bicubic_takes_the_step_of_a_scale_factor(old, new, antialias):
    """DINOv2 gives PyTorch the factor (new + 0.1) / old, which is not new / old."""
    assume(not (antialias and old == new))  # PyTorch then returns its input, whatever the factor
    factor = (new + 0.1) / old
    expected = torch_matrix(old, scale_factor=(factor, 1.0), mode="bicubic", antialias=antialias)
    kernel = resize.bicubic_antialias if antialias else resize.bicubic
    np.testing.assert_allclose(
        kernel(old, new, step=1 / factor), expected, rtol=0, atol=RESIZE_FLOAT64
    )


@pytest.mark.parametrize("kernel", [resize.linear, bilinear_antialias])
def test_resize_applies_one_matrix_to_rows_and_one_to_columns(kernel):
    grid = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    ours = resize.resize(jnp.asarray(grid), kernel(5, 11), kernel(7, 3))
    expected = F.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None],
        size=(11, 3),
        mode="bilinear",
        antialias=kernel is bilinear_antialias,
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_FLOAT32)
