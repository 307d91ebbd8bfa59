# What the token of hospital A's node may do at the key service: use and rotate one key, and no more.

path "transit/keys/hospital-a"        { capabilities = ["read"] }
path "transit/encrypt/hospital-a"     { capabilities = ["update"] }
path "transit/decrypt/hospital-a"     { capabilities = ["update"] }
path "transit/keys/hospital-a/rotate" { capabilities = ["update"] }
path "transit/keys/hospital-a/config" { capabilities = ["update"] }
