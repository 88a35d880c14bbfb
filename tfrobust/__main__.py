"""`python -m tfrobust`: the command `tfrobust`."""

from tfrobust.commands import main

if __name__ == "__main__":
    main()
