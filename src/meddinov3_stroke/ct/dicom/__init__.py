"""DICOM: from files as a scanner, PACS or Kaggle gives them to series, and from one series to a canonical volume."""
