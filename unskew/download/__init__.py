"""Download, check and unpack the files of datasets."""
