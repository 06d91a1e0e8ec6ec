"""What can go wrong, and what to do about it.

DatakitError
├── RecipeError   the YAML is wrong: names each field and the values it takes
├── SourceError   a collection is missing, or is not what its manifest says
│   └── NotBayer   a camera RAW whose sensor has no Bayer pattern, or that is not a sensor's numbers any more
├── StageError    a rule dropped more than it may, counts do not add up, or the disk failed
│   └── TooManyPairs   so many records look alike that their pairs are not worth listing: names the largest cluster
└── ShardError    what a build left is damaged: names the file and the command that rewrites it

An image that cannot be read is not an error: it is a record dropped as "unreadable".
"""


class DatakitError(Exception): ...


class RecipeError(DatakitError): ...


class SourceError(DatakitError): ...


class NotBayer(SourceError): ...


class StageError(DatakitError): ...


class TooManyPairs(StageError): ...


class ShardError(DatakitError): ...
