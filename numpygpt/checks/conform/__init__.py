"""Whether another implementation of GPT computes what ours does: a ladder of small models, judged tensor by tensor.

    cases          the models of the ladder: the standard ones, and others that hypothesis draws
    rungs          what is compared of each, from logits to cached generation
    adapter        how a class in Python is asked, and what it answers
    process        how a program in any language is asked (docs/conformance.md)
    judging        asking for a case, and comparing the answer with the trace of the reference
    shrinking      the smallest model for which it still fails in the same way
    expectations   a file of skips and failures that are known
    junit          the outcome as JUnit XML
"""
