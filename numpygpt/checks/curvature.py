"""The curvature of a loss: products of its Hessian with vectors, and the Hessian's largest eigenvalues.

    w   the parameters, as one vector of n numbers
    g   the gradient of the loss, a function of w that the hand-written backward computes
    H   the Hessian, the derivative of g; n x n, symmetric, never formed

Hessian-vector product. H v is the derivative of g along v. The whole backward is analytic, so complex step takes it:

    H v = Im g(w + i h v) / h,   h = 1e-30

One forward and one backward in complex numbers give H v exact to a few roundings. Nothing is subtracted, and no second
backward is written. (Pearlmutter 1994, "Fast exact multiplication by the Hessian", Neural Computation 6, takes the same
derivative by hand.)

Lanczos. From a random unit vector q_1, each step multiplies by H and subtracts what lies along the earlier vectors:

    H q_j = b_{j-1} q_{j-1} + a_j q_j + b_j q_{j+1}

The eigenvalues of the tridiagonal matrix T of the a and b, the Ritz values, approach those of H, the outermost first
(Lanczos 1950; Golub & Van Loan, "Matrix Computations", chapter 10). With y the eigenvector of T for a Ritz value, some
eigenvalue of H is no farther from it than b_m |y_m|. The vectors lose their orthogonality by rounding, so each new one
is made orthogonal to all earlier ones, twice.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.derivatives import STEP
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array, Inexact, Integer

#: From v to H v, both (n).
Product = Callable[[Array], Array]


def hessian_vector_product(
    model: GPTModel, inputs: Integer[Array, "B T"], targets: Integer[Array, "B T"], vector: Mapping[str, Array]
) -> dict[str, Array]:
    """H v of the model's loss on these tokens, without dropout: {name: array}, as the vector and the gradients are.

    The model is not changed. Everything is computed in complex128.
    """
    stepped = {name: array + 1j * STEP * vector[name] for name, array in model.named_parameters().items()}
    complex_model = GPTModel.from_state_dict(model.config, stepped, np.complex128, attention=model.attention)
    _, gradients = complex_model.loss_and_grads(inputs, targets)
    return {name: gradient.imag / STEP for name, gradient in gradients.items()}


def product_of(model: GPTModel, inputs: Integer[Array, "B T"], targets: Integer[Array, "B T"]) -> Product:
    """The same of vectors that hold all parameters one after the other, in the order of `named_parameters`."""
    shapes = {name: array.shape for name, array in model.named_parameters().items()}
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]

    def product(vector: Array) -> Array:
        parts = zip(shapes.items(), np.split(vector, ends), strict=True)
        by_name = {name: part.reshape(shape) for (name, shape), part in parts}
        products = hessian_vector_product(model, inputs, targets, by_name)
        return np.concatenate([products[name].ravel() for name in shapes])

    return product


class Spectrum(NamedTuple):
    """Ritz values, in ascending order.

    values   approximate eigenvalues of H
    errors   for each, how far the nearest eigenvalue of H is at most
    """

    values: Inexact[Array, "m"]
    errors: Inexact[Array, "m"]


def lanczos(
    product: Product,
    n: int,
    iterations: int,
    rng: np.random.Generator,
    advance: Callable[[int], Any] = lambda done: None,
) -> Spectrum:
    """The Ritz values of a symmetric n x n matrix after some iterations, each of which is one product.

    advance   is told how many more iterations are done

    It ends early if the vectors span all that the matrix makes of the first one; then the values are exact. Raises
    InputError if a product is not finite.
    """
    basis = np.empty((min(iterations, n), n))
    diagonal, beside = [], []
    vector = rng.standard_normal(n)
    vector /= np.linalg.norm(vector)
    for j in range(len(basis)):
        basis[j] = vector
        image = product(vector)
        if not np.isfinite(image).all():
            raise InputError("the curvature is not finite: the model is damaged or has diverged")
        size = float(np.linalg.norm(image))
        diagonal.append(float(vector @ image))
        for _ in range(2):
            image = image - basis[: j + 1].T @ (basis[: j + 1] @ image)
        beside.append(float(np.linalg.norm(image)))
        advance(1)
        if beside[-1] <= n * np.finfo(np.float64).eps * size:
            beside[-1] = 0.0
            break
        vector = image / beside[-1]
    tridiagonal = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, vectors = np.linalg.eigh(tridiagonal)
    return Spectrum(values, beside[-1] * np.abs(vectors[-1]))
