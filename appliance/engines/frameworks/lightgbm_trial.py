"""Loads a model of LightGBM and computes a row of zeros, as a child that may crash.

Run by its path, as ``python -I -S lightgbm_trial.py LIBRARY MODEL``: it uses the C library alone, because the import of
the package takes seconds. The status is 1 if the library refuses the file.

Source: https://lightgbm.readthedocs.io/en/stable/C-API.html
"""

from __future__ import annotations

import ctypes
import sys

FLOAT64, ROW_MAJOR, NORMAL, ALL = 1, 1, 0, -1

if __name__ == "__main__":
    library = ctypes.CDLL(sys.argv[1])
    booster, number, size = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int64()
    if library.LGBM_BoosterCreateFromModelfile(sys.argv[2].encode(), ctypes.byref(number), ctypes.byref(booster)):
        sys.exit(1)
    library.LGBM_BoosterGetNumFeature(booster, ctypes.byref(number))
    library.LGBM_BoosterCalcNumPredict(booster, 1, NORMAL, 0, ALL, ctypes.byref(size))
    row, result = (ctypes.c_double * number.value)(), (ctypes.c_double * size.value)()
    library.LGBM_BoosterPredictForMat(
        *(booster, row, FLOAT64, 1, number, ROW_MAJOR, NORMAL, 0, ALL, b"num_threads=1"), ctypes.byref(size), result
    )
