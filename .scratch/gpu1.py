import sys, time, functools, statistics
sys.path.insert(0,'.')
import jax, jax.numpy as jnp
from jax import lax
print(jax.devices(), jax.__version__)
import flax, optax, orbax.checkpoint; print(flax.__version__, optax.__version__, orbax.checkpoint.__version__)
from lipjax.spectral import rescaling as R, gram as G
from experiments.benchmarks import constrain_share as CS
def t(f,*a,n=5):
    f=jax.jit(f); jax.block_until_ready(f(*a)); ts=[]
    for _ in range(n):
        s=time.perf_counter(); jax.block_until_ready(f(*a)); ts.append(time.perf_counter()-s)
    return statistics.median(ts)
W=jax.random.normal(jax.random.key(0),(7,2880,2048))
fl=7*2*2880*2048**2
def gram(alg): return lambda w: jnp.einsum('lnm,lnk->lmk',w,w,precision=alg)
for name in ['HIGHEST','HIGH','DEFAULT']:
    s=t(gram(getattr(lax.Precision,name)),W); print('gram',name,s*1e3,'ms',fl/s/1e12,'TF')
ref=jnp.einsum('nm,nk->mk',W[0],W[0],precision='highest')
import numpy as np
ref64=np.asarray(W[0],np.float64).T@np.asarray(W[0],np.float64)
for a in ['F32_F32_F32','TF32_TF32_F32_X3','BF16_BF16_F32_X6','BF16_BF16_F32_X9','TF32_TF32_F32','BF16_BF16_F32_X3']:
    try:
        p=getattr(lax.DotAlgorithmPreset,a); s=t(gram(p),W)
        e=np.abs(np.asarray(jax.jit(gram(p))(W[:1])[0],np.float64)-ref64).max()/np.abs(ref64).max()
        sh=np.abs(np.asarray(jax.jit(gram(p))(W[:1])[0],np.float64)-ref64).max()
        print('gram',a,s*1e3,'ms',fl/s/1e12,'TF','rel err',e)
    except Exception as ex: print(a,repr(ex)[:200])
s=t(lambda w: jax.vmap(lambda x: G.contract(x,x))(w),W); print('contract blocked',s*1e3,'ms')
G.BLOCK=10**9
s=t(lambda w: jax.vmap(lambda x: G.contract(x,x))(w),W); print('contract unblocked',s*1e3,'ms')
G.BLOCK=256
import json
r=CS.main(['--size','S','--out','/tmp/cs.json'])
m=R.matmul
R.matmul=lambda a,b: jnp.matmul(a,b)
print('backward default precision'); jax.clear_caches()
r=CS.main(['--size','S'])
