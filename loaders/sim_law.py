"""The law of the simulated double: when visits, draws and waveforms happen, and how components act on the ECG."""

from dataclasses import dataclass
from functools import cache

import numpy as np

# Not scipy.stats, which takes half a second to import.
from scipy.special import ndtri

from anyecg.loaders.targets import read_targets

FS = 500
# Visits that share random numbers. A patient's visits lie in one block, so blocks are made independently.
BLOCK = 100
PATIENTS_A_BLOCK = 85
MAX_DRAWS = 10
WINDOW_S = 10.0
# Correlation of a component's level between two draws of a visit.
LEVEL_CORRELATION = 0.9
# Share of the nuisance variance that changes from window to window; the rest stays through a visit.
WINDOW_SHARE = 0.1
# Share of the visit's part that is the patient's own and returns with every visit.
PATIENT_SHARE = 0.7


@dataclass(frozen=True)
class Effect:
    """One ECG parameter moved by a component's level.

    Attributes
    ----------
    size : float
        Change of the parameter for one standard deviation of the level.
    nuisance : float
        Standard deviation of everything else that moves the parameter, in units of ``size``; always above 1.
    """

    component: str
    parameter: str
    size: float
    nuisance: float


# Directions as in textbooks (potassium: tall, narrow T; calcium: short QT; magnesium: long PR). Sizes and nuisances are
# chosen so that the best AUROCs span 0.60 to 0.85. Amplitudes are relative to R: a common gain carries nothing.
LAW = (
    Effect("POTASSIUM", "T amplitude, log", 0.17, 1.5),
    Effect("POTASSIUM", "T width, log", -0.11, 1.6),
    Effect("CALCIUM", "QT, s", -0.017, 1.3),
    Effect("BNP, NT-PRO", "QRS width, log", 0.11, 1.7),
    Effect("MAGNESIUM", "PR, s", 0.011, 2.1),
    Effect("LACTATE.WHOLE BLD", "heart rate, log", 0.06, 3.3),
)
PLANTED = tuple(dict.fromkeys(effect.component for effect in LAW))
PLANTED_ABNORMAL = 0.32


@dataclass(frozen=True)
class ComponentLaw:
    """How a component's level, a standard normal number, becomes a result.

    Attributes
    ----------
    low, high : float
        Limits of its targets; NaN where it has none.
    p_low, p_high : float
        Shares of results beyond each limit, before rounding.
    measured : float
        Share of the draws in which it is measured.
    """

    component: str
    unit: str
    low: float
    high: float
    p_low: float
    p_high: float
    measured: float

    @property
    def scale(self):
        """Change of the result for one standard deviation of the level, between the limits."""
        if np.isnan(self.low) or np.isnan(self.high):
            return 0.35 * float(np.nanmax([self.low, self.high]))
        return (self.high - self.low) / float(-ndtri(self.p_high) - ndtri(self.p_low))

    @property
    def decimals(self):
        """Digits after the point of a printed result."""
        return max(0, round(-np.log10(self.scale / 10)))

    def value(self, level):
        """Return results for levels: rising, linear between two limits, flattening beyond; exponential with one."""
        level = np.asarray(level, np.float64)
        if np.isnan(self.low) or np.isnan(self.high):
            limit, edge = (self.high, -ndtri(self.p_high)) if np.isnan(self.low) else (self.low, ndtri(self.p_low))
            return np.round(limit * np.exp(0.35 * (level - edge)), self.decimals)
        c_low, c_high, scale = ndtri(self.p_low), -ndtri(self.p_high), self.scale
        above = self.high + scale * np.log1p(np.maximum(level - c_high, 0))
        fall = np.log1p(np.maximum(c_low - level, 0))
        below = self.low * np.exp(-scale / self.low * fall) if self.low > 0 else self.low - scale * fall
        inside = self.low + (level - c_low) * scale
        result = np.where(level > c_high, above, np.where(level < c_low, below, inside))
        return np.round(result, self.decimals)

    @cache  # noqa: B019  The laws are made once and stay.
    def edge(self, direction):
        """Return the level beyond which a printed result is abnormal."""
        level = np.linspace(-5, 5, 200_001)
        value = self.value(level)
        return float(level[value > self.high].min() if direction == "high" else level[value < self.low].max())


@cache
def component_laws():
    """Return the law of every component of the paper's table, in its order.

    Unplanted components keep the paper's share of abnormal results between 10 and 40 %, and of measured draws between
    30 and 95 %, so that a few thousand visits give an interval for each.
    """
    targets = read_targets()
    most = max(target.paper_windows for target in targets)
    laws = []
    for component in dict.fromkeys(target.component for target in targets):
        mine = {target.direction: target for target in targets if target.component == component}
        first = next(iter(mine.values()))
        limit = {side: mine[side].limit if side in mine else float("nan") for side in ("low", "high")}
        share = {
            side: float(np.clip(mine[side].paper_positives / mine[side].paper_windows, 0.1, 0.4))
            if side in mine
            else 0.0
            for side in ("low", "high")
        }
        measured = float(np.clip(first.paper_windows / most, 0.3, 0.95))
        if component in PLANTED:
            share, measured = dict.fromkeys(share, PLANTED_ABNORMAL), 0.8
        laws.append(
            ComponentLaw(component, first.unit, limit["low"], limit["high"], share["low"], share["high"], measured)
        )
    return tuple(laws)


def visit_times(rng, n, hours):
    """Return when ``n`` visits have draws and waveforms, in s after arrival.

    Returns
    -------
    (time_ND, n_draws_N, start_NS, stop_NS)
        Draws at whole seconds, rising, at least 300 s apart, infinite beyond ``n_draws_N``; segments of waveform on the
        500-Hz grid, equal begin and end where there is none. Monitoring begins up to a quarter of the visit late, so
        draws lie before it; segments last 20 min and gaps 5 min on average.
    """
    span = hours * 3600.0
    most = max(1, min(MAX_DRAWS, int(span // 600)))
    n_draws_N = np.minimum(1 + rng.poisson(1.2 * hours, n), most)
    number_D = np.arange(most)
    room_ND = np.where(number_D < n_draws_N[:, None], rng.random((n, most)), np.inf)
    time_ND = np.sort(room_ND, axis=1) * (span - 300.0 * (n_draws_N[:, None] - 1)) + 300.0 * number_D
    n_segments = int(np.ceil(span / 900)) + 4
    length_NS, gap_NS = rng.exponential(1200, (n, n_segments)), rng.exponential(300, (n, n_segments))
    stop_NS = rng.uniform(0, 0.25 * span, n)[:, None] + np.cumsum(length_NS + gap_NS, axis=1) - gap_NS
    start_NS, stop_NS = (np.round(np.minimum(t, span) * FS) / FS for t in (stop_NS - length_NS, stop_NS))
    return np.floor(time_ND), n_draws_N, start_NS, stop_NS


def levels(rng, shape_ND):
    """Return standard normal levels of one component, shape (visits, draws), correlated within a visit."""
    visit_N = rng.standard_normal((shape_ND[0], 1))
    return np.sqrt(LEVEL_CORRELATION) * visit_N + np.sqrt(1 - LEVEL_CORRELATION) * rng.standard_normal(shape_ND)


@dataclass(frozen=True)
class VisitBlock:
    """The visits of one block.

    Attributes
    ----------
    number : int array, shape (N,)
        Numbers of the visits, from 0.
    patient : int array, shape (N,)
    arrival : int64 array, shape (N,)
        Seconds since 1970.
    time_ND, n_draws_N, start_NS, stop_NS : see ``visit_times``
    level_NDC : float array, shape (N, draws, planted components)
    nuisance_NE : float array, shape (N, effects)
        The visit's standard normal part of each effect's nuisance.
    has_waveforms, has_labs : bool array, shape (N,)
    """

    number: np.ndarray
    patient: np.ndarray
    arrival: np.ndarray
    time_ND: np.ndarray
    n_draws_N: np.ndarray
    start_NS: np.ndarray
    stop_NS: np.ndarray
    level_NDC: np.ndarray
    nuisance_NE: np.ndarray
    has_waveforms: np.ndarray
    has_labs: np.ndarray


# Independent streams of random numbers; a stream is a function of (seed, stream, number) alone.
OF_VISITS, OF_TABLES, OF_WAVEFORMS, OF_TRUTH = range(4)


def generator(seed, stream, number):
    """Return NumPy's generator of one stream: Philox (Salmon et al. 2011) keyed by its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, stream << 56 | number]))


def visit_block(seed, block, hours):
    """Make the visits of one block, always ``BLOCK`` of them, a function of its arguments."""
    rng = generator(seed, OF_VISITS, block)
    patient = rng.integers(0, PATIENTS_A_BLOCK, BLOCK)
    time_ND, n_draws_N, start_NS, stop_NS = visit_times(rng, BLOCK, hours)
    own = rng.standard_normal((PATIENTS_A_BLOCK, len(LAW)))[patient]
    nuisance_NE = np.sqrt(PATIENT_SHARE) * own + np.sqrt(1 - PATIENT_SHARE) * rng.standard_normal(own.shape)
    # Years 2200 to 2300: many lie beyond April 2262, where int64 nanoseconds end. A patient comes back within months.
    first = int(np.datetime64("2200-01-01", "s").astype(np.int64))
    first_visit = first + rng.integers(0, 95 * 365 * 86_400, PATIENTS_A_BLOCK)[patient]
    return VisitBlock(
        number=block * BLOCK + np.arange(BLOCK),
        patient=block * BLOCK + patient,
        arrival=first_visit + rng.exponential(120 * 86_400, BLOCK).astype(np.int64),
        time_ND=time_ND, n_draws_N=n_draws_N, start_NS=start_NS, stop_NS=stop_NS,
        level_NDC=np.stack([levels(rng, time_ND.shape) for _ in PLANTED], axis=2),
        nuisance_NE=nuisance_NE, has_waveforms=rng.random(BLOCK) < 0.75, has_labs=rng.random(BLOCK) < 0.92,
    )  # fmt: skip


def parameters(rng, time_W, time_D, level_DC, nuisance_E):
    """Return the ECG parameters of windows.

    Parameters
    ----------
    time_W : float array, shape (W,)
        Centres of the windows in s after arrival; a window shows the levels of the nearest draw.
    time_D : float array, shape (D,)
    level_DC, nuisance_E : see ``VisitBlock``

    Returns
    -------
    float array, shape (W, effects): deviations of the parameters of ``LAW`` from their typical values
    """
    nearest_W = np.abs(time_W[:, None] - time_D).argmin(axis=1)
    column_E = [PLANTED.index(effect.component) for effect in LAW]
    size_E, ratio_E = (np.array([getattr(effect, name) for effect in LAW]) for name in ("size", "nuisance"))
    noise_WE = rng.standard_normal((len(time_W), len(LAW)))
    nuisance_WE = np.sqrt(1 - WINDOW_SHARE) * nuisance_E + np.sqrt(WINDOW_SHARE) * noise_WE
    return size_E * (level_DC[nearest_W][:, column_E] + ratio_E * nuisance_WE)
