"""Says how far GPTQ damps a Hessian. Apart from the algorithm, which planning does not load."""

from __future__ import annotations

#: GPTQ's damping unless another is asked for: that of the reference code (`percdamp`) and of AutoGPTQ (`damp_percent`).
DAMPING = 0.01
