"""AdamW's step on blocks of weights whose elements count their own steps."""
