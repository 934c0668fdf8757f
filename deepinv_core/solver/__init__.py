"""The solvers: a file a kind (:mod:`.corrector`, :mod:`.predictor`, :mod:`.fitted`), their file format, released ones.

The networks need ``diffusers``, which is imported when the first is built, not before.
"""

from .config import Config
from .corrector import Corrector, CorrectorConfig
from .file import LoadedSolver, load_solver, require_base, save_solver
from .kind import Network, Solver
from .kinds import KINDS, bind
from .predictor import Predictor, PredictorConfig
from .released import from_released
