import torch, math, time
from torch import nn
import sbnlib
from sbnlib import data
from sbnlib.losses import autoencoding_loss, kl_bits
from sbnlib.noise import Logistic
torch.set_default_dtype(torch.float64); torch.set_num_threads(1)
digits = data.load("digits")
y = (digits.train.inputs.double() > 0).double(); print(y.shape, y.mean(), digits.train.inputs.min(), digits.train.inputs.max())
yt = (digits.test.inputs.double() > 0).double()
law = Logistic()
n = 8
codes = 2.*((torch.arange(2**n)[:,None] >> torch.arange(n)) & 1) - 1
def misfits(decoder, y):  # (B, 256)
    z = decoder(codes)
    return nn.functional.softplus(z).sum(-1) - y @ z.T
def law_of(a):
    return (torch.log(law.cdf(a))[:,None] *(codes>0) + torch.log(law.cdf(-a))[:,None]*(codes<0)).sum(-1).exp()
def train(rule, epochs=40, lr=.03, seed=0):
    torch.manual_seed(seed)
    enc, dec = nn.Linear(64, n), nn.Linear(n, 64)
    mean = y.mean(0)
    adam = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr)
    steps = len(y)//50
    slow = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs*steps)
    for _ in range(epochs):
        for b in torch.randperm(len(y)).split(50):
            if len(b)<50: continue
            a = enc(y[b]-mean)
            kl = kl_bits(a, law)
            if rule == "exact":
                loss = (law_of(a)*misfits(dec, y[b])).sum(-1)
            else:
                x = sbnlib.sample_sign(a, law)
                x = rule(a, x, law)
                z = dec(x)
                loss = (nn.functional.softplus(z) - y[b]*z).sum(-1)
            adam.zero_grad(); (loss+kl).mean().backward(); adam.step(); slow.step()
    with torch.no_grad():
        out=[]
        for pics in (y, yt):
            a = enc(pics-mean); P = law_of(a); m = misfits(dec, pics)
            elbo = ((P*m).sum(-1)+kl_bits(a,law)).mean().item()
            nll = (-torch.logsumexp(-m, -1) + n*math.log(2)).mean().item()
            mu = 2*law.cdf(a)-1
            out += [elbo, nll, (1-mu**2).mean().item()]
    return enc, dec, out
for name, rule in (("exact","exact"),("st",sbnlib.straight_through),("zgr",sbnlib.zgr)):
    for lr in (.01,.03,.1):
        t=time.time(); _,_,o = train(rule, lr=lr); print(name, lr, [round(v,2) for v in o], f"{time.time()-t:.1f}s", flush=True)
