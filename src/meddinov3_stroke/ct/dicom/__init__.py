"""DICOM: from files to a canonical volume (`read.DicomInput`), and what an input holds (`choice.inspect_dicom`)."""
