"""Assertions about what an attack found."""

import numpy as np


def assert_exact(result, exact, *, rtol, atol=0.0):
    """Every example succeeded, at the exact distance or just above it."""
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(result.distance, exact, rtol=rtol, atol=atol)
