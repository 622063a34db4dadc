"""Plans: what the TPU compiler reports of a recipe's train step, before a TPU is rented.

slices.py    named slices and their chips' speeds       hlo.py       the compiled program, parsed
program.py   the recipe's step, abstract                  estimate.py  its time: cycles, kernels, collectives
compiler.py  the step, compiled: its memory and program   report.py    all of it as a table and as JSON
flops.py     the model's own floating point operations    search.py    several plans, and the best of them
"""
