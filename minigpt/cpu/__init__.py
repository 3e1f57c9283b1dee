"""Speed on a CPU, added to a model from outside: faster modules, weights in 8 bits, a compiled generation step."""

from minigpt.cpu.layers import optimize as optimize
