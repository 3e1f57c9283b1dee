"""CPU speed-ups, added to a model from outside: faster modules, 8-bit weights, a compiled generation step."""

from minigpt.cpu.layers import optimize as optimize
