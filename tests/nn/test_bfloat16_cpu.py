"""bfloat16 on a CPU: which products it asks XLA for, and that they are right."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_FOR_USERS
from flax import nnx
from tolerances import BFLOAT16_ROUNDING, SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.nn import hardware
from fmi_jax.nn.conv import convolution, depthwise_conv
from fmi_jax.nn.linear import flat_product, linear
from fmi_jax.nn.lora import LoRALinear
from fmi_jax.nn.mlp import Mlp, gelu

ROWS, INNER, COLUMNS = 37, 19, 23


@pytest.fixture
def with_products(monkeypatch):
    """A CPU that has the instructions, whichever this one is: XLA computes them on any."""
    monkeypatch.setattr(hardware, "bfloat16_products", lambda: True)


@pytest.fixture
def layer() -> nnx.Linear:
    return linear(INNER, COLUMNS, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))


def draw(*shape: int, dtype=jnp.bfloat16) -> jax.Array:
    seed = sum(shape)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def gradients(module, x):
    """The gradients by the parameters of `module` and by `x`, of a sum with unequal weights."""
    graphdef, params = nnx.split(module)

    def weighted(params, x):
        y = nnx.merge(graphdef, params)(x).astype(jnp.float32)
        return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))).sum()

    return jax.grad(weighted, argnums=(0, 1)), (params, x)


def products(function, *args) -> list[tuple[str, str, str]]:
    """Types of both operands and of the result of each product that is asked for."""
    text = jax.jit(function).lower(*args).as_text()
    found = re.findall(r"dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text)
    return [tuple(shape.split("x")[-1] for shape in types) for types in found]


def assert_close(ours, expected) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=BFLOAT16_ROUNDING * np.abs(b).max())


def test_every_product_of_a_layer_in_both_passes_sums_bfloat16_in_float32(with_products, layer):
    asked = products(*(lambda g, args: (g, *args))(*gradients(layer, draw(2, ROWS, INNER))))
    assert asked == [("bf16", "bf16", "f32")] * 2  # by the input and by the kernel
    forward = products(lambda x: layer(x), draw(2, ROWS, INNER))
    assert forward == [("bf16", "bf16", "f32")]


def test_without_the_instructions_a_layer_asks_for_what_it_always_did(layer, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_instructions", frozenset)
    assert products(lambda x: layer(x), draw(ROWS, INNER)) == [("bf16", "bf16", "bf16")]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_hardware_compiles_what_it_always_did(platform, layer, monkeypatch):
    plain = nnx.Linear(INNER, COLUMNS, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(layer))
    x = draw(ROWS, INNER)

    def program(module) -> str:
        function, args = gradients(module, x)
        return jax.jit(function).lower(*args).as_text()

    monkeypatch.setattr(hardware, "platform", lambda: platform)
    assert program(layer) == program(plain)


def test_float32_is_the_same_program_with_the_instructions_and_without(monkeypatch):
    mlp = Mlp(INNER, COLUMNS, dtype=jnp.float32, rngs=nnx.Rngs(0))
    function, args = gradients(mlp, draw(2, ROWS, INNER, dtype=jnp.float32))

    def program(has: bool) -> str:
        monkeypatch.setattr(hardware, "bfloat16_products", lambda: has)
        return jax.jit(lambda *args: function(*args)).lower(*args).as_text()

    assert program(True) == program(False)


def test_the_compiled_layer_converts_no_operand_to_float32():
    """Looks at the program for the CPU at hand: XLA converts both operands of a product that it
    has no instructions for, and of one that it is not asked for in the right way."""
    rows, inner, columns = 131, 67, 71
    layer = linear(inner, columns, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    function, args = gradients(layer, draw(3, rows, inner))
    for program, arguments in ((lambda p, x: nnx.merge(nnx.graphdef(layer), p)(x), args),
                               (function, args)):  # fmt: skip
        text = jax.jit(program).lower(*arguments).compile(AS_FOR_USERS).as_text()
        sides = {f"{a},{b}" for a in (inner, columns, 3 * rows) for b in (inner, columns, 3 * rows)}
        converted = [
            shape
            for shape, of in re.findall(r"f32\[([\d,]+)\]\S* convert\(%?(\w+)", text)
            if shape in sides and not of.startswith("dot")
        ]
        in_bfloat16 = re.findall(r"bf16\[[\d,]+\]\S* (?:parameter|convert|fusion|copy)\(", text)
        assert in_bfloat16
        assert (not converted) == hardware.bfloat16_products(), text


@pytest.mark.parametrize(
    "shape", [(ROWS, INNER, COLUMNS), (1, INNER, COLUMNS), (ROWS, INNER, 1), (3, 2, 5), (2, 1, 1)]
)
def test_product_and_gradients_are_right_up_to_one_rounding(shape, with_products):
    n, i, o = shape
    x, kernel, dy = draw(n, i), draw(i, o), draw(n, o)
    y, pull = jax.vjp(flat_product, x, kernel)
    assert y.dtype == jnp.bfloat16
    wide = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
    assert_close(y, wide[0] @ wide[1])
    assert_close(pull(dy), (wide[2] @ wide[1].T, wide[0].T @ wide[2]))


def test_a_transposition_beside_a_product_stays_out_of_it(with_products, layer):
    """XLA draws one into a product that it has settled on, and then has no code for it."""
    graphdef, params = nnx.split(layer)
    x, turned = draw(INNER, 1, ROWS), draw(COLUMNS, INNER, dtype=jnp.float32)

    @jax.jit
    def both(x, turned):
        def call(x, turned):
            params["kernel"] = nnx.Param(turned.T)
            return nnx.merge(graphdef, params)(x.transpose(2, 1, 0).reshape(ROWS, INNER))

        y, pull = jax.vjp(call, x, turned)
        return y, pull(y)

    y, (dx, dturned) = both(x, turned)
    rows, kernel = np.asarray(x, np.float64)[:, 0].T, np.asarray(turned, np.float64).T
    kernel = kernel.astype(jnp.bfloat16).astype(np.float64)
    assert_close(y, rows @ kernel)
    y = np.asarray(y, np.float64)
    assert_close((dx[:, 0], dturned), ((y @ kernel.T).T, (rows.T @ y).T))


def test_bias_gradient_is_summed_in_float32(with_products, layer):
    """In bfloat16 a sum of ones stops at 256."""
    graphdef, params = nnx.split(layer)
    x = jnp.zeros((3, 211, INNER), jnp.bfloat16)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graphdef, p)(x).astype(jnp.float32).sum()))(params)
    np.testing.assert_array_equal(grads["bias"][...], np.full(COLUMNS, 633))


def test_layers_in_a_loop_on_several_devices_and_mapped(with_products):
    x, kernel = draw(8, ROWS, INNER), draw(INNER, COLUMNS)

    def loss(kernel, x):
        return flat_product(x, kernel).astype(jnp.float32).sum()

    def in_loop(kernel, x):
        return jax.lax.map(lambda one: jax.grad(loss)(kernel, one), x).astype(jnp.float32).sum(0)

    whole = np.asarray(x, np.float64).sum((0, 1))[:, None] * np.ones(COLUMNS)
    assert_close(jax.jit(jax.grad(loss))(kernel, x), whole)
    assert_close(jax.jit(in_loop)(kernel, x), whole)
    mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(kernel, x)
    assert_close(mapped.astype(jnp.float32).sum(0), whole)
    rows = parallel.batch_sharding(parallel.make_mesh(devices=jax.devices()[:2]))
    assert_close(jax.jit(jax.grad(loss))(kernel, jax.device_put(x, rows)), whole)


def test_patches_and_adapters_use_the_same_products(with_products, layer):
    x, kernel = draw(2, 14, 21, 3), draw(7, 7, 3, 11)
    wanted = [("bf16", "bf16", "f32")]
    assert products(lambda x: convolution(x, kernel, (7, 7), "VALID"), x) == wanted
    adapted = LoRALinear(layer, (0,), COLUMNS, rank=2, scale=1.0, rngs=nnx.Rngs(1))
    assert products(lambda x: adapted(x), draw(ROWS, INNER)) == wanted * 3


def test_activations_are_rounded_once(with_products):
    x = draw(64, 31)
    exact = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), exact)


def test_a_depthwise_convolution_is_rounded_once():
    x, kernel, dy = draw(2, 7, 5, 3), draw(7, 7, 1, 3), draw(2, 7, 5, 3)

    @jax.jit
    def run(x, kernel, dy):
        y, back = jax.vjp(depthwise_conv, x, kernel)
        return y, *back(dy)

    ours = run(x, kernel, dy)
    assert all(array.dtype == jnp.bfloat16 for array in ours)
    exact = run(*(array.astype(jnp.float32) for array in (x, kernel, dy)))
    for a, b in zip(ours, exact, strict=True):
        a, b = (np.asarray(array, np.float64) for array in (a, b))
        atol = SAME_FLOAT32 * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=BFLOAT16_ROUNDING / 2, atol=atol)
