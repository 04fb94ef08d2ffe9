"""The chain of traccc on a CPU: cells, measurements, space points, seeds, a combinatorial Kalman filter, a fit.

The clustering is this package's; the other stages are algorithms of ACTS, called one by one through pyacts. As in the
public service, a track is left out if its fit was not successful, has less than 0 degrees of freedom, or fewer than 3
measurements, and a covariance that is not a number, infinite or above 1e8 is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exatrkx_hpc.traccc.cells import Cells, Float32, Float64, Int64
from exatrkx_hpc.traccc.clusters import Measurements, cluster_cells
from exatrkx_hpc.traccc.detector import Detector, generic_detector
from exatrkx_hpc.traccc.pyacts import NANOSECOND, Acts
from exatrkx_hpc.traccc.tracks import Tracks, no_tracks

_DEGREE = np.pi / 180.0

#: A track that the chain gives has at least as many measurements, as in the public service.
MIN_MEASUREMENTS = 3
#: A covariance above it becomes 0, as in the public service.
MAX_COVARIANCE = 1e8

# The numbers of the algorithms of ACTS, by its names, in its units: mm, GeV, radian, and mm for times (c t).

#: Triplets of space points. The region, `maxSeedsPerSpM` and `impactMax` are those of ACTS's own example with the
#: GenericDetector (Examples/Scripts/Python/ckf_tracks.py), and the scattering is that of traccc (seeding_config.hpp).
SEEDING: dict[str, float] = {
    "minPt": 0.4,  # the lowest pT that the simulation gives by default
    "cotThetaMax": 7.4,  # a pseudorapidity of 2.7
    "rMax": 200.0,
    "zMin": -2000.0,
    "zMax": 2000.0,
    "collisionRegionMin": -250.0,
    "collisionRegionMax": 250.0,
    "rMinMiddle": 0.0,
    "rMaxMiddle": 200.0,
    "deltaRMin": 10.0,  # between neighbours of a triplet
    "deltaRMax": 90.0,
    "impactMax": 3.0,
    "maxSeedsPerSpM": 1,
    "sigmaScattering": 3.0,  # standard deviations
    "radLengthPerSeed": 0.05,  # radiation lengths
}
#: Standard deviations of a seed's loc0, loc1, phi, theta, q/p and time, all as ACTS has them by default.
ESTIMATE: dict[str, float | list[float]] = {
    "initialSigmas": [1.0, 1.0, _DEGREE, _DEGREE, 0.0, NANOSECOND],
    "initialSigmaQoverPt": 0.1,
    "initialSigmaPtRel": 0.1,
}
#: A measurement belongs to a track up to the first chi2, and is an outlier up to the second: ACTS's `CkfConfig`.
MAX_CHI2, MAX_OUTLIER_CHI2 = 15.0, 25.0
#: A search follows the best measurement on each module alone.
MAX_BRANCHES = 1
#: A search ends at the third pixel or strip layer without a measurement; otherwise it takes a fifth longer.
MAX_HOLES = 2
#: The three measurements of a seed that nothing confirms are a fake in nine of ten cases.
MIN_CANDIDATE_MEASUREMENTS = MIN_MEASUREMENTS + 1
#: Candidates give way, the worst first, until none shares `maximumSharedHits` measurements with others.
AMBIGUITIES: dict[str, int] = {
    "maximumSharedHits": 3,
    "maximumIterations": 1_000_000,
    "nMeasurementsMin": MIN_MEASUREMENTS,
}
#: The fit begins with the variances of the candidate times this, so that it does not count the measurements twice.
FIT_INFLATION = 100.0
#: A Kalman filter and a smoother with the material of the detector; no measurement is too far away.
FIT: dict[str, bool | float] = {
    "multipleScattering": True,
    "energyLoss": True,
    "reverseFilteringMomThreshold": 0.0,
    "reverseFilteringCovarianceScaling": 1.0,
    "chi2Cut": float("inf"),
    "useJosephFormulation": False,
}


class Chain:
    """The chain with its detector; loading takes half a second. It is for one thread.

    Raises ImportError without pyacts.
    """

    def __init__(self, detector: Detector | None = None) -> None:
        self.detector = detector or generic_detector()
        self._acts = acts = Acts(self.detector)
        self._put_measurements = acts.writer("MeasurementContainer", "measurements")
        self._measurements = acts.reader("MeasurementContainer", "measurements")
        self._put_subset = acts.writer("MeasurementSubset", "subset")
        self._tracks = acts.reader("ConstTrackContainer", "fitted")
        self._identifiers = {name.value: name for name in acts.geometry.geoIdSurfaceMap()}
        self._algorithms = self._seeding() | self._finding() | self._fitting()

    def find_tracks(self, cells: Cells) -> Tracks:
        """Return the tracks of an event; the order of the cells does not change them.

        Raises BadTensor, a ValueError, for impossible cells (see `cluster_cells`): UnknownModule names a geometry ID
        that the detector does not have.
        """
        measured = cluster_cells(cells, self.detector)
        if not len(measured):
            return no_tracks()
        examples = self._acts.examples
        board = examples.WhiteBoard(self._acts.quiet)
        context = examples.AlgorithmContext(0, 0, board, 0)
        self._put(measured, context, board)
        for stage, algorithm in self._algorithms.items():
            if algorithm.execute(context) != examples.ProcessCode.SUCCESS:
                raise RuntimeError(f"ACTS could not finish the stage {stage!r} of this event; see the server's log")
        return self._read(self._tracks(board), measured)

    def _put(self, measured: Measurements, context: object, board: object) -> None:
        """Give the measurements to ACTS. All algorithms read a subset of them, which here has all."""
        examples, names, axes = self._acts.examples, self._identifiers, [0, 1]
        container = examples.MeasurementContainer()
        container.reserve(len(measured))
        rows = zip(measured.geometry_ids.tolist(), measured.local.tolist(), measured.variance.tolist(), strict=True)
        for module, local, variance in rows:
            container.emplaceMeasurement(names[module], axes, local, variance)
        self._put_measurements(context, container)
        # The subset keeps the address of the container, which is the whiteboard's own from now on.
        stored = self._measurements(board)
        self._put_subset(context, examples.MeasurementSubset(stored, list(range(len(measured)))))

    def _seeding(self) -> dict[str, Any]:
        """Return the algorithms of ACTS from measurements to the seeds and their parameters, by their stages."""
        acts, examples, level, geometry = self._acts.acts, self._acts.examples, self._acts.quiet, self._acts.geometry
        return {
            "space points": examples.SpacePointMaker(
                level=level,
                inputMeasurements="subset",
                outputSpacePoints="space_points",
                trackingGeometry=geometry,
                geometrySelection=[acts.GeometryIdentifier(volume=volume) for volume in self.detector.seeding_volumes],
            ),
            "seeds": examples.GridTripletSeedingAlgorithm(
                level=level,
                inputSpacePoints="space_points",
                outputSeeds="all_seeds",
                bFieldInZ=self._acts.field_in_z,
                **SEEDING,
            ),
            "estimates": examples.TrackParamsEstimationAlgorithm(
                level=level,
                inputSeeds="all_seeds",
                outputTrackParameters="estimates",
                outputSeeds="seeds",
                trackingGeometry=geometry,
                magneticField=self._acts.field,
                **ESTIMATE,
            ),
        }

    def _finding(self) -> dict[str, Any]:
        """Return those from seeds to tracks that share few measurements."""
        acts, examples, level = self._acts.acts, self._acts.examples, self._acts.quiet
        geometry, field, pixels = self._acts.geometry, self._acts.field, self.detector.seeding_volumes
        finder = examples.TrackFindingAlgorithm
        anywhere = acts.GeometryIdentifier()
        cuts: list[Any] = [(anywhere, ([], [MAX_CHI2], [MAX_OUTLIER_CHI2], [MAX_BRANCHES]))]
        return {
            "finding": finder(
                level=level,
                inputMeasurements="subset",
                inputInitialTrackParameters="estimates",
                inputSeeds="seeds",
                outputTracks="candidates",
                measurementSelectorCfg=acts.MeasurementSelector.Config(cuts),
                findTracks=finder.makeTrackFinderFunction(geometry, field, level),
                trackingGeometry=geometry,
                magneticField=field,
                seedDeduplication=True,
                stayOnSeed=True,
                twoWay=True,
                pixelVolumeIds=list(pixels),
                stripVolumeIds=[volume for volume in self.detector.volumes if volume not in pixels],
                maxPixelHoles=MAX_HOLES,
                maxStripHoles=MAX_HOLES,
                trackSelectorCfg=acts.TrackSelector.Config(minMeasurements=MIN_CANDIDATE_MEASUREMENTS),
            ),
            "ambiguities": examples.GreedyAmbiguityResolutionAlgorithm(
                level=level, inputTracks="candidates", outputTracks="chosen", **AMBIGUITIES
            ),
        }

    def _fitting(self) -> dict[str, Any]:
        """Return the fit."""
        examples, level = self._acts.examples, self._acts.quiet
        correction = examples.FreeToBoundCorrection(False)
        fit = examples.makeKalmanFitterFunction(
            self._acts.geometry, self._acts.field, freeToBoundCorrection=correction, level=level, **FIT
        )
        return {
            "fit": examples.RefittingAlgorithm(
                level=level,
                inputTracks="chosen",
                outputTracks="fitted",
                initialVarInflation=[FIT_INFLATION] * 6,
                fit=fit,
            ),
        }

    def _read(self, fitted: Any, measured: Measurements) -> Tracks:  # noqa: ANN401 - a container of ACTS
        """Return the tracks of a container of ACTS, which gives the states one by one."""
        index_of = self._acts.examples.IndexSourceLink.fromSourceLink
        # ACTS gives arrays of a container's tracks, but not of a track's states, so each state becomes a track.
        states = self._acts.examples.TrackContainer()
        index: list[int] = []
        lengths: list[int] = []
        for track in fitted:
            before = len(index)
            for state in reversed(list(track.trackStatesReversed)):
                if not (state.typeFlags.isMeasurement and state.hasSmoothed):
                    continue
                # The index is inside the link, which must outlive it.
                link = state.uncalibratedSourceLink
                index.append(index_of(link).index())
                copy = states.makeTrack()
                copy.parameters = state.smoothed
                copy.covariance = state.smoothedCovariance
            lengths.append(len(index) - before)
        arrays = states.makeConst()
        return _tracks(
            measured,
            index=np.asarray(index, dtype=np.int64),
            lengths=np.asarray(lengths, dtype=np.int64),
            smoothed=np.array(arrays.parameters).reshape(-1, 6),
            covariance=np.array(arrays.covariance).reshape(-1, 6, 6),
            chi2=np.array(fitted.chi2, dtype=np.float64).reshape(-1),
        )


def _tracks(
    measured: Measurements, *, index: Int64, lengths: Int64, smoothed: Float64, covariance: Float64, chi2: Float64
) -> Tracks:
    """Return the tracks that are kept, from the smoothed states of all.

    For S states: the measurement of each (`index` `[S]`), the six parameters of ACTS `[S, 6]` and their covariance
    `[S, 6, 6]`; for T tracks: the number of states and the chi2, `[T]` each.
    """
    # A measurement has two dimensions, and a track without a measured time has five parameters.
    ndf = 2 * lengths - 5
    keep = (lengths >= MIN_MEASUREMENTS) & (ndf >= 0)
    start = np.full((len(lengths), 6), np.nan)
    some = lengths > 0
    start[some] = smoothed[(np.cumsum(lengths) - lengths)[some]]
    keep &= np.isfinite(start).all(axis=1)  # a fit that diverged was not successful
    found = Tracks(
        parameters=np.column_stack([chi2, ndf, start]).astype(np.float32),
        lengths=lengths,
        measurements=np.column_stack([measured.local[index], smoothed[:, 2:]]).astype(np.float32),
        covariances=_finite(covariance[:, :5, :5].reshape(-1, 25)),
        geometry_ids=measured.geometry_ids[index],
    )
    return found.chosen(keep)


def _finite(covariances: Float64) -> Float32:
    bad = ~np.isfinite(covariances) | (covariances > MAX_COVARIANCE)
    return np.where(bad, 0.0, covariances).astype(np.float32)
