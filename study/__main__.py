"""``python -m network_surgery.study``, and the script that ``ray submit`` uploads: the same command line as
``surgery``."""

from network_surgery.study.cli import main

if __name__ == "__main__":
    main()
