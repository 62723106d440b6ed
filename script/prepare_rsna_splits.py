"""Split a series CSV into train, validation and test by patient."""

from meddinov3_stroke.rsna_split import main

if __name__ == "__main__":
    raise SystemExit(main())
