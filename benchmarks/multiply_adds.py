"""Multiply-adds counted in a traced program (`analysis.multiply_adds` counts by hand)."""

import math


def traced(jaxpr) -> int:
    """Multiply-adds of all matrix products and convolutions in a program.

    Args:
        jaxpr: of `jax.make_jaxpr(…)(…).jaxpr`. Loops count once. Of branches by platform the
            default counts: on CPUs the depthwise convolution is a sum, without any product.
    """
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        elif equation.primitive.name == "conv_general_dilated":
            outputs = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            depth = math.prod(shapes[1]) // outputs
            total += math.prod(equation.outvars[0].aval.shape) * depth
        if equation.primitive.name == "cond":
            total += traced(equation.params["branches"][-1].jaxpr)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += traced(inner)
    return total
