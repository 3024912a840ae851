"""One recording written in every format that can be written here, by other libraries than those that read it."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

FS = 250
LEADS = ("I", "II", "V1")


def counts(n_samples=2500):
    """Return int16 counts of 2.5 uV, shape (samples, leads)."""
    rng = np.random.default_rng(11)
    return rng.integers(-800, 800, (n_samples, len(LEADS))).astype(np.int16)


def millivolts(n_samples=2500):
    """Return float32 mV, shape (samples, leads)."""
    return (counts(n_samples) * 0.0025).astype(np.float32)


def dicom_group(count_TL, *, bits=16, kind="SS", label="RHYTHM", leads=LEADS, fs=FS, late_ms=None, **elements):
    """Return a multiplex group of counts of 2.5 uV."""
    group = Dataset()
    group.MultiplexGroupLabel, group.WaveformOriginality = label, "ORIGINAL"
    group.NumberOfWaveformSamples, group.NumberOfWaveformChannels = count_TL.shape
    group.SamplingFrequency = fs
    if late_ms is not None:
        group.MultiplexGroupTimeOffset = late_ms
    channels = []
    for lead in leads:
        channel, unit, source = Dataset(), Dataset(), Dataset()
        unit.CodeValue, unit.CodingSchemeDesignator = "uV", "UCUM"
        source.CodeMeaning, source.CodeValue, source.CodingSchemeDesignator = f"Lead {lead}", lead, "99HERE"
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [unit]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = "2.5", "1"
        channel.ChannelBaseline = "0"
        channel.WaveformBitsStored = bits
        channels.append(channel)
    group.ChannelDefinitionSequence = channels
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = bits, kind
    group.add_new(0x54001010, "OB" if bits == 8 else "OW", count_TL.tobytes())
    for name, value in elements.items():
        setattr(group, name, value)
    return group


def write_dicom(path, groups, **elements):
    """Write a general ECG; further elements by their keywords."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.2"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName, data.PatientID = "Canary^Patient", "4711"
    data.AcquisitionDateTime = "20240102030405.250000"
    data.WaveformSequence = groups
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path
