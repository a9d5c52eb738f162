"""Sweeps: many configurations, or one model evaluated in many ways, their results, and one table of all."""

from conformer.sweep.schedule import run_sweep as run_sweep
from conformer.sweep.trials import Sweep as Sweep
from conformer.sweep.trials import SweepError as SweepError
from conformer.sweep.trials import Trial as Trial
from conformer.sweep.trials import load_sweep as load_sweep
