"""normlab's Hydra plugins; Hydra imports them at every start, so they import torch only when used."""
