"""Made-up results of one network as Peck 2017's experiments keep them."""

import numpy as np
import pandas as pd


def made_up():
    """Four examples, of which two break the printed bound, and one is not changed."""
    return pd.DataFrame(
        {
            "predicted": [0, 1, 2, 0],
            "printed": [1.0, 2.0, 0.5, 3.0],
            "certified": [0.5, 0.5, 0.5, 0.5],
            "tightened": [0.6, 0.7, 0.8, 0.9],
            "fast_gradient_sign": [2.0, 1.5, np.nan, 4.0],
            "epsilon": [0.2, 0.15, np.nan, 0.4],
            "becomes": [1, 0, -1, 2],
            "carlini_wagner": [1.5, 2.5, np.nan, 2.9],
        }
    )
