"""Train and test a head from a series CSV and its NIfTI volumes."""

from meddinov3_stroke.rsna_train import main

if __name__ == "__main__":
    raise SystemExit(main())
