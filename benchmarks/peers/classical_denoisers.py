"""Classical denoisers for benchmarks/denoising.py, in an environment of their own (pip install scikit-image bm3d).

    python classical_denoisers.py PICTURES.npz SIGMA

Each gets an oracle: the parameter that is best on these very pictures, which no user would know.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import sys
import time

import bm3d
import numpy as np
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

given, sigma = np.load(sys.argv[1]), float(sys.argv[2])
clean, noisy = given["clean"], given["noisy"]
METHODS = {
    "total variation": (denoise_tv_chambolle, [{"weight": w} for w in (0.1, 0.15, 0.2, 0.25, 0.3)], 200),
    "non-local means": (
        denoise_nl_means,
        [{"h": h, "patch_size": 5, "patch_distance": 6, "sigma": sigma} for h in (0.1, 0.2, 0.3)],
        100,
    ),
    "BM3D": (bm3d.bm3d, [{"sigma_psd": sigma * scale} for scale in (0.8, 1.0, 1.2)], 30),
}


def psnr(x, recon):
    return float(np.mean(10 * np.log10(1 / ((np.clip(recon, 0, 1) - x) ** 2).mean((1, 2)))))


told = {}
for name, (method, grid, n) in METHODS.items():
    started = time.process_time()
    best = max(psnr(clean[:n], np.stack([method(row, **setting) for row in noisy[:n]])) for setting in grid)
    told[name] = {"psnr": best, "rows": n, "seconds": time.process_time() - started}
print(json.dumps(told))
