"""DICOM: from files to a canonical volume (`read.open_dicom`), and what an input holds (`inspect.inspect_dicom`)."""
