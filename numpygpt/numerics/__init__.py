"""Number formats and quantization: what a weight or an activation becomes when it has fewer bits.

    formats      bf16, fp16, fp8 and tf32: rounding to them, and their bit patterns
    autocast     which operation of a GPT runs in which format, by torch.autocast's tables
    casting      an operation that runs in a format, forward and backward
    schemes      the schemes of quantization by name: quantize, dequantize
    absmax       whole numbers and a step, symmetric
    zero_point   whole numbers and a step, from the smallest value to the largest
    codebook     block-wise codes by a table of levels; double quantization
    dynamic      256 levels with a decimal exponent
    quantile     levels that are equally frequent in the array
    nf4, fp4     16 levels: quantiles of the normal distribution, floating-point numbers
    blocks       what the schemes share
"""
