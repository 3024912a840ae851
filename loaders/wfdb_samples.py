"""Read one lead of one header's signal files: own decoders for formats 16 and 212, wfdb's for the others. signal(5)."""

import os
from typing import NamedTuple

import numpy as np

from anyecg.kernels.counts import counts_to_mv
from anyecg.loaders.errors import RecordError
from anyecg.loaders.wfdb_header import MAX_FRAME, MAX_SAMPLES, Signal, inside, open_found

_MV_PER_UNIT = {"nv": 1e-6, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}
# Counts decoded at a time: small enough to stay in the processor's cache, large enough to hide the calls.
_BLOCK_COUNTS = 131_072
_WFDB_BLOCK_COUNTS = 2_097_152


class _Form(NamedTuple):
    """``n_bytes`` bytes hold ``n_counts`` counts (0: compressed); ``invalid`` is the count of an invalid sample."""

    n_counts: int
    n_bytes: int
    invalid: int | None


_FORMS = {
    "8": _Form(1, 1, None),
    "16": _Form(1, 2, -(2**15)),
    "24": _Form(1, 3, -(2**23)),
    "32": _Form(1, 4, -(2**31)),
    "61": _Form(1, 2, -(2**15)),
    "80": _Form(1, 1, -(2**7)),
    "160": _Form(1, 2, -(2**15)),
    "212": _Form(2, 3, -(2**11)),
    "310": _Form(3, 4, -(2**9)),
    "311": _Form(3, 4, -(2**9)),
    "508": _Form(0, 0, -(2**7)),
    "516": _Form(0, 0, -(2**15)),
    "524": _Form(0, 0, -(2**23)),
}
# Bytes that the first one or two of three counts reach into.
_PART_BYTES = {"310": (0, 2, 4), "311": (0, 2, 3), "212": (0, 2)}


def mv_per_unit(unit, lead, record):
    """Return how many mV one unit of a lead is; refuse a lead that is no voltage."""
    factor = _MV_PER_UNIT.get(unit.lower())
    if factor is None:
        raise RecordError(f"{record}: lead {lead[:40]!r} is in {unit[:40]!r}; wanted a voltage (mV, uV, nV or V)")
    return factor


class Lead:
    """One lead of a record of one segment; files are opened by ``read`` only.

    Attributes
    ----------
    fs : float
        Sampling rate of this lead in Hz: frames a second times samples a frame.
    n_samples, n_frames : int
        Length, also where the header gives none and the size of the first signal file decides.
    size : int
        Bytes of the lead's signal file, -1 without one.
    """

    def __init__(self, header, position, root):
        self._record, self._signal = header.name, header.signals[position]
        self._width = self._signal.samples_per_frame
        self._form = _known_form(self._signal, header.name)
        self._together: list[Signal] = []
        self._frame = 0
        found: dict[str, tuple[str, int]] = {}
        for i, other in enumerate(header.signals):
            if i == position:
                self._index, self._first_column = len(self._together), self._frame
            if other.file not in found:
                found[other.file] = inside(root, header.folder, other.file, header.name)
            if other.file == self._signal.file:
                if other.form != self._form:
                    raise RecordError(f"{header.name}: formats {self._form} and {other.form} in one file; wanted one")
                self._together.append(other)
                self._frame += other.samples_per_frame
        self._offset = self._together[0].byte_offset
        self._path, self.size = found[self._signal.file]
        self.n_frames = header.n_frames or _frames_in_file(header, found[header.signals[0].file][1])
        self.n_samples = self.n_frames * self._width
        self.fs = header.fs * self._width
        if self._frame > MAX_FRAME:
            raise RecordError(f"{header.name}: {self._frame} samples a frame; wanted at most {MAX_FRAME}")
        if not 0 < self.n_samples <= MAX_SAMPLES:
            raise RecordError(f"{header.name}: {self.n_samples} samples; wanted 1 to {MAX_SAMPLES}")

    def read(self, start, stop):
        """Return float32 mV, shape (stop - start,), NaN where invalid; a whole lead is checked against its checksum."""
        signal = self._signal
        factor = mv_per_unit(signal.unit, signal.lead, self._record) / signal.gain
        # A lead with a skew was stored that many frames late; beyond its end there are no samples.
        shift = min(signal.skew * self._width, self.n_samples)
        first, last = min(start + shift, self.n_samples), min(stop + shift, self.n_samples)
        # Before any memory is taken for samples that are not there.
        self._check_length(-(-last // self._width))
        out = np.empty(stop - start, np.float32)
        if last - first < len(out):
            out[last - first :] = np.nan
        total = self._read_mv(first, last, factor, out[: last - first])
        if start == 0 and stop == self.n_samples and signal.checksum:
            total += self._read_mv(0, first, factor, np.empty(first, np.float32))
            if (total - signal.checksum) % 65536:
                raise RecordError(
                    f"{self._record}: lead {signal.lead[:40]!r} has checksum {total % 65536}; its header gives "
                    f"{signal.checksum % 65536}. The signal file or the header is damaged; fetch them again."
                )
        return out

    def _read_mv(self, first, last, factor, out):
        """Fill ``out`` with samples ``first`` to ``last`` as they lie in the file; return the sum of their counts."""
        if first == last:
            return 0
        total, done = 0, 0
        baseline, invalid = self._signal.baseline, _FORMS[self._form].invalid
        first_frame, last_frame = first // self._width, -(-last // self._width)
        skipped = first - first_frame * self._width
        decode = {"16": self._blocks_16, "212": self._blocks_212}.get(self._form, self._blocks_wfdb)
        for counts in decode(first_frame, last_frame):
            counts = counts[skipped : skipped + len(out) - done]
            stop = done + len(counts)
            total += counts_to_mv(
                counts, baseline=baseline, factor=factor, invalid=invalid, out_T=out[done:stop]
            )  # fmt: skip
            done, skipped = stop, 0
        return total

    def _column(self, counts):
        """Pick this lead out of interleaved counts."""
        if self._frame == 1:
            return counts
        columns = counts.reshape(-1, self._frame)[:, self._first_column : self._first_column + self._width]
        return columns[:, 0] if self._width == 1 else columns.reshape(-1)

    def _blocks_16(self, first_frame, last_frame):
        """Yield 16-bit little-endian counts."""
        n_block = max(1, _BLOCK_COUNTS // self._frame)
        buffer = np.empty(min(n_block, last_frame - first_frame) * self._frame, "<i2")
        descriptor = open_found(self._path, self._record)
        try:
            for frame in range(first_frame, last_frame, n_block):
                counts = buffer[: (last_frame - frame) * self._frame]
                self._fill(descriptor, counts, self._offset + 2 * frame * self._frame)
                yield self._column(counts)
        finally:
            os.close(descriptor)

    def _blocks_212(self, first_frame, last_frame):
        """Yield pairs of 12-bit counts packed into three bytes; an odd total leaves out the last byte of its pair."""
        n_block = max(1, _BLOCK_COUNTS // self._frame)
        descriptor = open_found(self._path, self._record)
        try:
            for frame in range(first_frame, last_frame, n_block):
                first, last = frame * self._frame, min(frame + n_block, last_frame) * self._frame
                pair, end = first // 2, (last + 1) // 2
                packed = np.zeros(3 * (end - pair), np.uint8)
                self._fill(descriptor, packed[: len(packed) - last % 2], self._offset + 3 * pair)
                low, middle, high = packed.reshape(-1, 3).astype(np.int16).T
                counts = np.empty(2 * (end - pair), np.int16)
                counts[0::2] = low | (middle & 0x0F) << 8
                counts[1::2] = high | (middle & 0xF0) << 4
                counts -= (counts & 0x800) << 1
                yield self._column(counts[first - 2 * pair :][: last - first])
        finally:
            os.close(descriptor)

    def _blocks_wfdb(self, first_frame, last_frame):
        """Yield counts that wfdb decodes; it is given one regular file below the root and no header."""
        from wfdb.io._signal import _rd_segment

        os.close(open_found(self._path, self._record))
        folder, file = os.path.split(os.path.realpath(self._path))
        n_leads = len(self._together)
        initial = [other.initial for other in self._together]
        # Format 8 stores differences: what comes before must be read too.
        start_frame = 0 if self._form == "8" else first_frame
        n_block = max(1, _WFDB_BLOCK_COUNTS // self._frame)
        for frame in range(start_frame, last_frame, n_block):
            end = min(frame + n_block, last_frame)
            try:
                counts = _rd_segment(
                    file_name=[file] * n_leads, dir_name=folder, pn_dir=None, fmt=[self._form] * n_leads,
                    n_sig=n_leads, sig_len=self.n_frames, byte_offset=[self._offset] * n_leads,
                    samps_per_frame=[other.samples_per_frame for other in self._together], skew=[0] * n_leads,
                    init_value=initial, sampfrom=frame, sampto=end, channels=[self._index], ignore_skew=True,
                )[0]  # fmt: skip
            except Exception as cause:  # untyped errors of many kinds on damaged files
                raise RecordError(f"{self._record}: {file}: {type(cause).__name__}: {cause}") from None
            if len(counts) != (end - frame) * self._width:
                raise RecordError(f"{self._record}: {file} is cut short at frame {frame}")
            initial[self._index] = int(counts[-1])
            if end > first_frame:
                yield counts[max(0, first_frame - frame) * self._width :].astype(np.int32)

    def _check_length(self, n_frames):
        """Refuse a file that holds fewer frames: decoding what is there might make up the rest."""
        if self.size < 0 or not _FORMS[self._form].n_bytes:
            return
        wanted = self._offset + _bytes_of(self._form, n_frames * self._frame)
        if self.size < wanted:
            raise RecordError(
                f"{self._record}: {self._signal.file} is cut short; found {self.size} of {wanted} bytes. "
                "Fetch the record again."
            )

    def _fill(self, descriptor, array, offset):
        """Read the file from ``offset`` until the array is full."""
        n_found = 0
        try:
            while n_found < array.nbytes:
                rest = array if n_found == 0 else memoryview(array).cast("B")[n_found:]
                n_read = os.preadv(descriptor, [rest], offset + n_found)
                if not n_read:
                    raise RecordError(f"{self._record}: {self._signal.file} is cut short; fetch the record again")
                n_found += n_read
        except OSError as cause:
            raise RecordError(f"{self._record}: {self._signal.file}: {cause.strerror}") from None


def _known_form(signal, record):
    if signal.form not in _FORMS:
        raise RecordError(f"{record}: format {signal.form}; wanted one of {', '.join(_FORMS)}")
    return signal.form


def _bytes_of(form, n_counts):
    """Return the bytes that ``n_counts`` counts from the start of a file reach into."""
    blocks, rest = divmod(n_counts, _FORMS[form].n_counts)
    return blocks * _FORMS[form].n_bytes + (_PART_BYTES[form][rest] if rest else 0)


def _frames_in_file(header, size):
    """Return the frames in the first signal file of a header without a length."""
    together = [signal for signal in header.signals if signal.file == header.signals[0].file]
    form = _FORMS[_known_form(together[0], header.name)]
    if not form.n_bytes:
        raise RecordError(f"{header.name}: the header gives no length; add the number of samples to its first line")
    n_frames = (
        (size - together[0].byte_offset)
        * form.n_counts
        // form.n_bytes
        // sum(signal.samples_per_frame for signal in together)
    )
    if n_frames < 1:
        raise RecordError(f"{header.name}: the header gives no length, and {header.signals[0].file} holds no samples")
    return n_frames
