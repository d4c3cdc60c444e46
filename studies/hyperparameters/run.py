"""The whole study, one core: about 25 minutes of processor time; resumes where it was cut off.

python studies/hyperparameters/run.py
"""

import analyse
import collect
import draw
import splice
from read import HERE


def main() -> None:
    for group in ("main", "others"):
        collect.main(group)
    if not (HERE / "splice.json").is_file():
        splice.main()
    analyse.main()
    draw.main()


if __name__ == "__main__":
    main()
