"""K nets trained as one in plain torch: stacked parameters, optimizers, schedules, the fused and compiled step."""
