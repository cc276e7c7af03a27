"""The script with its own copy of Dassl's default config."""

import dassl_keys

import train

train.get_cfg_default = dassl_keys.own_defaults

if __name__ == "__main__":
    train.main(train.parse())
