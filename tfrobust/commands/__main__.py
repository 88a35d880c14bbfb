"""`python -m tfrobust.commands`: the command `tfrobust`."""

from tfrobust.commands.dispatch import main

if __name__ == "__main__":
    main()
