// Fused FFN (bf16 in, fp32 accumulation), forward and backward, AVX512-BF16.
#include <immintrin.h>
#include <omp.h>
#include <cstdint>
#include <cstring>
#include <cstdlib>
typedef uint16_t bf;
#define INL static inline __attribute__((always_inline))
INL __m512 ld(const bf*p){return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)),16));}
INL void st(bf*p,__m512 v){_mm256_storeu_si256((__m256i*)p,(__m256i)_mm512_cvtneps_pbh(v));}
INL __m512 dp(__m512 a,__m512i x,__m512i y){return _mm512_dpbf16_ps(a,(__m512bh)x,(__m512bh)y);}
INL float f(bf x){uint32_t u=(uint32_t)x<<16;float r;memcpy(&r,&u,4);return r;}
INL bf tob(float x){__m128bh r=_mm_cvtneps_pbh(_mm_set1_ps(x));uint16_t o[8];memcpy(o,&r,16);return o[0];}
// interleave two rows of n bf16 (n multiple of 32) -> pairs
INL void interleave(const bf*a,const bf*b,bf*o,int n){
  for(int i=0;i<n;i+=32){
    __m512i x=_mm512_loadu_si512(a+i),y=_mm512_loadu_si512(b+i);
    __m512i lo=_mm512_unpacklo_epi16(x,y),hi=_mm512_unpackhi_epi16(x,y);
    __m512i i0=_mm512_set_epi64(11,10,3,2,9,8,1,0),i1=_mm512_set_epi64(15,14,7,6,13,12,5,4);
    _mm512_storeu_si512(o+2*i,_mm512_permutex2var_epi64(lo,i0,hi));
    _mm512_storeu_si512(o+2*i+32,_mm512_permutex2var_epi64(lo,i1,hi));
  }
}
// acc[MR][NV] += sum_k A(k,m) * B(k,n); a: pointer to 32-bit pair of (k=0,m=0), strides in pairs
template<int MR,int NV> INL void mk(__m512 (&acc)[MR][NV],const uint32_t*a,long sm,long sk,const bf*b,long sb,int K2){
  for(int k=0;k<K2;k++){
    __m512i B[NV];
    #pragma GCC unroll 8
    for(int v=0;v<NV;v++)B[v]=_mm512_loadu_si512(b+(long)k*sb+32*v);
    #pragma GCC unroll 16
    for(int m=0;m<MR;m++){
      __m512i A=_mm512_set1_epi32(a[m*sm+k*sk]);
      #pragma GCC unroll 8
      for(int v=0;v<NV;v++)acc[m][v]=dp(acc[m][v],A,B[v]);
    }
  }
}
// out rows: op 0: relu(acc+bias)->bf16 ; 1: acc+bias+res ; 2: mask by h>0 ; 3: plain
template<int OP,int MR,int NV> INL void tile(const bf*A,int K,const bf*Bp,int N,int n0,const float*bias,bf*out,long so,const bf*aux,long sx){
  __m512 acc[MR][NV];
  for(int m=0;m<MR;m++)for(int v=0;v<NV;v++)acc[m][v]=(OP<2)?_mm512_loadu_ps(bias+n0+16*v):_mm512_setzero_ps();
  mk<MR,NV>(acc,(const uint32_t*)A,K/2,1,Bp+2*n0,2*N,K/2);
  #pragma GCC unroll 16
  for(int m=0;m<MR;m++){
    #pragma GCC unroll 8
    for(int v=0;v<NV;v++){
      __m512 r=acc[m][v];
      if(OP==0)r=_mm512_max_ps(r,_mm512_setzero_ps());
      if(OP==1)r=_mm512_add_ps(r,ld(aux+m*sx+n0+16*v));
      if(OP==2){__m512 h=ld(aux+m*sx+n0+16*v);r=_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(h,_mm512_setzero_ps(),_CMP_GT_OQ),r);}
      st(out+m*so+n0+16*v,r);
    }
  }
}
template<int OP,int N> INL void gemm(const bf*A,int T,int K,const bf*Bp,const float*bias,bf*out,long so,const bf*aux,long sx){
  constexpr int Q=N/64, R=(N%64)/16;
  for(int q=0;q<Q;q++)for(int m=0;m<T;m+=4)tile<OP,4,4>(A+(long)m*K,K,Bp,N,64*q,bias,out+m*so,so,aux+m*sx,sx);
  if(R)for(int m=0;m<T;m+=8)tile<OP,8,R?R:1>(A+(long)m*K,K,Bp,N,64*Q,bias,out+m*so,so,aux+m*sx,sx);
}
// dW[M][N] += A^T B, both as interleaved pairs
template<int M,int N> INL void outer(const bf*Ap,const bf*Bp,int T,float*W){
  constexpr int Q=N/64, R=(N%64)/16;
  for(int m=0;m<M;m+=4)for(int q=0;q<Q;q++){
    __m512 acc[4][4];float*w=W+(long)m*N+64*q;
    for(int i=0;i<4;i++)for(int v=0;v<4;v++)acc[i][v]=_mm512_loadu_ps(w+i*N+16*v);
    mk<4,4>(acc,(const uint32_t*)Ap+m,1,M,Bp+128*q,2*N,T/2);
    for(int i=0;i<4;i++)for(int v=0;v<4;v++)_mm512_storeu_ps(w+i*N+16*v,acc[i][v]);
  }
  if(R)for(int m=0;m<M;m+=8){
    constexpr int V=R?R:1;
    __m512 acc[8][V];float*w=W+(long)m*N+64*Q;
    for(int i=0;i<8;i++)for(int v=0;v<V;v++)acc[i][v]=_mm512_loadu_ps(w+i*N+16*v);
    mk<8,V>(acc,(const uint32_t*)Ap+m,1,M,Bp+128*Q,2*N,T/2);
    for(int i=0;i<8;i++)for(int v=0;v<V;v++)_mm512_storeu_ps(w+i*N+16*v,acc[i][v]);
  }
}
template<int N> INL void colsum(const bf*P,int T,float*s){ // += sum over rows of interleaved pairs
  __m512i one=_mm512_set1_epi32(0x3f803f80);
  for(int v=0;v<N/16;v++){__m512 a=_mm512_loadu_ps(s+16*v);for(int k=0;k<T/2;k++)a=dp(a,_mm512_loadu_si512(P+(long)k*2*N+32*v),one);_mm512_storeu_ps(s+16*v,a);}
}
static void pack(const float*W,int K,int N,long sk,long sn,bf*o){ // B[k][n]=W[k*sk+n*sn]
  for(int k=0;k<K;k+=2)for(int n=0;n<N;n++){o[(long)k*N+2*n]=tob(W[k*sk+n*sn]);o[(long)k*N+2*n+1]=tob(W[(k+1)*sk+n*sn]);}
}
constexpr int T=64;
template<int D> INL void normed(const bf*x,const float*mean,const float*rstd,bf*o){
  for(int v=0;v<D/16;v++){__m512 m=_mm512_loadu_ps(mean+16*v),r=_mm512_loadu_ps(rstd+16*v);
    for(int t=0;t<T;t++)st(o+(long)t*D+16*v,_mm512_mul_ps(_mm512_sub_ps(ld(x+(long)t*D+16*v),m),r));}
}
template<int D,int H> void fwd(long N,const bf*x,const float*mean,const float*rstd,const float*W1,const float*b1,const float*W2,const float*b2,bf*h,bf*y,int res){
  alignas(64) static bf w1[D*H],w2[D*H];alignas(64) static bf zero[T*D];
  pack(W1,D,H,1,D,w1);   // W1 (H,D): B[k=d][n=h]
  pack(W2,H,D,1,H,w2);   // W2 (D,H): B[k=h][n=d]
  #pragma omp parallel for schedule(static)
  for(long b=0;b<N/T;b++){
    alignas(64) bf xn[T*D];
    const bf*xb=x+b*T*D,*in=xb;
    if(mean){normed<D>(xb,mean,rstd,xn);in=xn;}
    gemm<0,H>(in,T,D,w1,b1,h+b*T*H,H,xb,0);
    gemm<1,D>(h+b*T*H,T,H,w2,b2,y+b*T*D,D,res?xb:zero,res?D:0);
  }
}
// returns dxhat in dx, gradients: dW1 as (D,H), dW2 (D,H), db1, db2
template<int D,int H> void bwd(long N,const bf*x,const float*mean,const float*rstd,const float*W1,const float*W2,const bf*h,const bf*dy,bf*dx,float*dW1,float*db1,float*dW2,float*db2){
  alignas(64) static bf w1[D*H],w2[D*H];
  pack(W2,D,H,H,1,w2);   // B[k=d][n=h]=W2[d][h]
  pack(W1,H,D,D,1,w1);   // B[k=h][n=d]=W1[h][d]
  int nt=omp_get_max_threads();
  size_t per=2*D*H+H+D;per=(per+31)/16*16;
  float*acc=(float*)aligned_alloc(64,sizeof(float)*per*nt);memset(acc,0,sizeof(float)*per*nt);
  #pragma omp parallel
  {
    float*a1=acc+per*omp_get_thread_num(),*a2=a1+D*H,*s1=a2+D*H,*s2=s1+H;
    alignas(64) bf xn[T*D],dh[T*H],P1[T*D],P2[T*H];
    #pragma omp for schedule(static)
    for(long b=0;b<N/T;b++){
      const bf*xb=x+b*T*D,*in=xb,*g=dy+b*T*D,*hb=h+b*T*H;
      if(mean){normed<D>(xb,mean,rstd,xn);in=xn;}
      for(int t=0;t<T;t+=2){interleave(g+(long)t*D,g+(long)(t+1)*D,P1+(long)t*D,D);interleave(hb+(long)t*H,hb+(long)(t+1)*H,P2+(long)t*H,H);}
      outer<D,H>(P1,P2,T,a2);colsum<D>(P1,T,s2);
      gemm<2,H>(g,T,D,w2,nullptr,dh,H,hb,H);
      for(int t=0;t<T;t+=2){interleave(in+(long)t*D,in+(long)(t+1)*D,P1+(long)t*D,D);interleave(dh+(long)t*H,dh+(long)(t+1)*H,P2+(long)t*H,H);}
      outer<D,H>(P1,P2,T,a1);colsum<H>(P2,T,s1);
      gemm<3,D>(dh,T,H,w1,nullptr,dx+b*T*D,D,nullptr,0);
    }
  }
  for(int i=0;i<nt;i++){float*a=acc+per*i;
    for(int j=0;j<D*H;j++){dW1[j]+=a[j];dW2[j]+=a[D*H+j];}
    for(int j=0;j<H;j++)db1[j]+=a[2*D*H+j];
    for(int j=0;j<D;j++)db2[j]+=a[2*D*H+H+j];}
  free(acc);
}
template<int D> void bnb(long N,const bf*x,const float*mean,const float*rstd,const float*m1,const float*m2,const bf*dy,bf*dx){
  // dx = dy + rstd*(dx - m1 - xhat*m2)
  #pragma omp parallel for schedule(static)
  for(long b=0;b<N/T;b++)for(int v=0;v<D/16;v++){
    __m512 m=_mm512_loadu_ps(mean+16*v),r=_mm512_loadu_ps(rstd+16*v),p=_mm512_loadu_ps(m1+16*v),q=_mm512_loadu_ps(m2+16*v);
    q=_mm512_mul_ps(q,r);
    for(long t=b*T;t<(b+1)*T;t++){long i=t*D+16*v;
      __m512 c=_mm512_sub_ps(ld(x+i),m);
      __m512 g=_mm512_fnmadd_ps(c,q,_mm512_sub_ps(ld(dx+i),p));
      st(dx+i,_mm512_fmadd_ps(g,r,ld(dy+i)));}
  }
}
template<int D> void stats(long N,const bf*x,float*s,float*ss){
  int nt=omp_get_max_threads();float*acc=(float*)aligned_alloc(64,sizeof(float)*2*D*nt);memset(acc,0,sizeof(float)*2*D*nt);
  #pragma omp parallel
  {float*a=acc+2*D*omp_get_thread_num();
  #pragma omp for schedule(static)
  for(long b=0;b<N/T;b++)for(int v=0;v<D/16;v++){__m512 p=_mm512_setzero_ps(),q=p;
    for(long t=b*T;t<(b+1)*T;t++){__m512 z=ld(x+t*D+16*v);p=_mm512_add_ps(p,z);q=_mm512_fmadd_ps(z,z,q);}
    _mm512_storeu_ps(a+16*v,_mm512_add_ps(p,_mm512_loadu_ps(a+16*v)));_mm512_storeu_ps(a+D+16*v,_mm512_add_ps(q,_mm512_loadu_ps(a+D+16*v)));}
  }
  for(int i=0;i<nt;i++)for(int j=0;j<D;j++){s[j]+=acc[2*D*i+j];ss[j]+=acc[2*D*i+D+j];}
  free(acc);
}
#define CASES(M) M(32,64) M(64,128) M(96,160)
extern "C"{
int ffn_fwd(int D,int H,long N,const bf*x,const float*mean,const float*rstd,const float*W1,const float*b1,const float*W2,const float*b2,bf*h,bf*y,int res){
#define M(d,hh) if(D==d&&H==hh){fwd<d,hh>(N,x,mean,rstd,W1,b1,W2,b2,h,y,res);return 0;}
CASES(M)
#undef M
return 1;}
int ffn_bwd(int D,int H,long N,const bf*x,const float*mean,const float*rstd,const float*W1,const float*W2,const bf*h,const bf*dy,bf*dx,float*dW1,float*db1,float*dW2,float*db2){
#define M(d,hh) if(D==d&&H==hh){bwd<d,hh>(N,x,mean,rstd,W1,W2,h,dy,dx,dW1,db1,dW2,db2);return 0;}
CASES(M)
#undef M
return 1;}
int bn_bwd(int D,long N,const bf*x,const float*mean,const float*rstd,const float*m1,const float*m2,const bf*dy,bf*dx){
 if(D==32)bnb<32>(N,x,mean,rstd,m1,m2,dy,dx);else if(D==64)bnb<64>(N,x,mean,rstd,m1,m2,dy,dx);else return 1;return 0;}
int col_stats(int D,long N,const bf*x,float*s,float*ss){
 if(D==32)stats<32>(N,x,s,ss);else if(D==64)stats<64>(N,x,s,ss);else return 1;return 0;}
}
// y = x + depthwise3x3(x) + bias on (n, S, S, D) bf16, with column sums; weight gradient.
template<int D> void dwf(long n,int S,const bf*x,const float*w9,const float*bias,bf*y,float*s,float*ss){
  int nt=omp_get_max_threads();float*acc=(float*)aligned_alloc(64,sizeof(float)*2*D*nt);memset(acc,0,sizeof(float)*2*D*nt);
  #pragma omp parallel
  {
    float*a=acc+2*D*omp_get_thread_num();
    alignas(64) bf zero[64*D];memset(zero,0,sizeof(zero));
    #pragma omp for schedule(static)
    for(long b=0;b<n;b++){
      const bf*im=x+b*S*S*D;bf*o=y+b*S*S*D;
      for(int v=0;v<D/16;v++){
        __m512 W[9];for(int k=0;k<9;k++)W[k]=_mm512_loadu_ps(w9+k*D+16*v);
        __m512 B=bias?_mm512_loadu_ps(bias+16*v):_mm512_setzero_ps(),p=_mm512_setzero_ps(),q=p;
        for(int r=0;r<S;r++){
          const bf*r0=(r?im+(long)(r-1)*S*D:zero)+16*v,*r1=im+(long)r*S*D+16*v,*r2=(r<S-1?im+(long)(r+1)*S*D:zero)+16*v;bf*ro=o+(long)r*S*D+16*v;
          __m512 z=_mm512_setzero_ps(),l0=z,l1=z,l2=z,c0=ld(r0),c1=ld(r1),c2=ld(r2);
          for(int c=0;c<S;c++){
            __m512 n0=z,n1=z,n2=z;
            if(c<S-1){n0=ld(r0+(long)(c+1)*D);n1=ld(r1+(long)(c+1)*D);n2=ld(r2+(long)(c+1)*D);}
            __m512 t=_mm512_add_ps(c1,B),u=_mm512_mul_ps(W[0],l0),g=_mm512_mul_ps(W[1],c0);
            t=_mm512_fmadd_ps(W[2],n0,t);u=_mm512_fmadd_ps(W[3],l1,u);g=_mm512_fmadd_ps(W[4],c1,g);
            t=_mm512_fmadd_ps(W[5],n1,t);u=_mm512_fmadd_ps(W[6],l2,u);g=_mm512_fmadd_ps(W[7],c2,g);
            t=_mm512_fmadd_ps(W[8],n2,t);t=_mm512_add_ps(t,_mm512_add_ps(u,g));
            st(ro+(long)c*D,t);
            if(s){p=_mm512_add_ps(p,t);q=_mm512_fmadd_ps(t,t,q);}
            l0=c0;l1=c1;l2=c2;c0=n0;c1=n1;c2=n2;
          }
        }
        if(s){_mm512_storeu_ps(a+16*v,_mm512_add_ps(p,_mm512_loadu_ps(a+16*v)));_mm512_storeu_ps(a+D+16*v,_mm512_add_ps(q,_mm512_loadu_ps(a+D+16*v)));}
      }
    }
  }
  if(s)for(int i=0;i<nt;i++)for(int j=0;j<D;j++){s[j]+=acc[2*D*i+j];ss[j]+=acc[2*D*i+D+j];}
  free(acc);
}
template<int D> void dww(long n,int S,const bf*x,const bf*dy,float*w9,float*db){
  int nt=omp_get_max_threads();float*acc=(float*)aligned_alloc(64,sizeof(float)*10*D*nt);memset(acc,0,sizeof(float)*10*D*nt);
  #pragma omp parallel
  {
    float*a=acc+10*D*omp_get_thread_num();
    alignas(64) bf zero[64*D];memset(zero,0,sizeof(zero));
    #pragma omp for schedule(static)
    for(long b=0;b<n;b++){
      const bf*im=x+b*S*S*D;const bf*o=dy+b*S*S*D;
      for(int v=0;v<D/16;v++){
        __m512 G[10];for(int k=0;k<10;k++)G[k]=_mm512_setzero_ps();
        for(int r=0;r<S;r++){
          const bf*r0=(r?im+(long)(r-1)*S*D:zero)+16*v,*r1=im+(long)r*S*D+16*v,*r2=(r<S-1?im+(long)(r+1)*S*D:zero)+16*v;const bf*ro=o+(long)r*S*D+16*v;
          __m512 z=_mm512_setzero_ps(),l0=z,l1=z,l2=z,c0=ld(r0),c1=ld(r1),c2=ld(r2);
          for(int c=0;c<S;c++){
            __m512 n0=z,n1=z,n2=z,g=ld(ro+(long)c*D);
            if(c<S-1){n0=ld(r0+(long)(c+1)*D);n1=ld(r1+(long)(c+1)*D);n2=ld(r2+(long)(c+1)*D);}
            G[0]=_mm512_fmadd_ps(g,l0,G[0]);G[1]=_mm512_fmadd_ps(g,c0,G[1]);G[2]=_mm512_fmadd_ps(g,n0,G[2]);
            G[3]=_mm512_fmadd_ps(g,l1,G[3]);G[4]=_mm512_fmadd_ps(g,c1,G[4]);G[5]=_mm512_fmadd_ps(g,n1,G[5]);
            G[6]=_mm512_fmadd_ps(g,l2,G[6]);G[7]=_mm512_fmadd_ps(g,c2,G[7]);G[8]=_mm512_fmadd_ps(g,n2,G[8]);
            G[9]=_mm512_add_ps(g,G[9]);
            l0=c0;l1=c1;l2=c2;c0=n0;c1=n1;c2=n2;
          }
        }
        for(int k=0;k<10;k++)_mm512_storeu_ps(a+k*D+16*v,_mm512_add_ps(G[k],_mm512_loadu_ps(a+k*D+16*v)));
      }
    }
  }
  for(int i=0;i<nt;i++)for(int j=0;j<D;j++){for(int k=0;k<9;k++)w9[k*D+j]+=acc[10*D*i+k*D+j];db[j]+=acc[10*D*i+9*D+j];}
  free(acc);
}
extern "C"{
int dw_fwd(int D,long n,int S,const bf*x,const float*w,const float*b,bf*y,float*s,float*ss){
 if(D==32)dwf<32>(n,S,x,w,b,y,s,ss);else if(D==64)dwf<64>(n,S,x,w,b,y,s,ss);else if(D==96)dwf<96>(n,S,x,w,b,y,s,ss);else return 1;return 0;}
int dw_wgrad(int D,long n,int S,const bf*x,const bf*dy,float*w,float*db){
 if(D==32)dww<32>(n,S,x,dy,w,db);else if(D==64)dww<64>(n,S,x,dy,w,db);else if(D==96)dww<96>(n,S,x,dy,w,db);else return 1;return 0;}
}
// LayerNorm without affine + linear: y = xhat W + b. W given as (DO, DI).
template<int DI> INL void lnhat(const bf*x,bf*o,float*rs){ // T rows
  constexpr int V=DI/16;
  for(int t=0;t<T;t++){__m512 z[V],s=_mm512_setzero_ps(),q=s;
    for(int v=0;v<V;v++){z[v]=ld(x+(long)t*DI+16*v);s=_mm512_add_ps(s,z[v]);}
    float m=_mm512_reduce_add_ps(s)/DI;__m512 M=_mm512_set1_ps(m);
    for(int v=0;v<V;v++){z[v]=_mm512_sub_ps(z[v],M);q=_mm512_fmadd_ps(z[v],z[v],q);}
    float r=1.0f/__builtin_sqrtf(_mm512_reduce_add_ps(q)/DI+1e-5f);__m512 R=_mm512_set1_ps(r);rs[t]=r;
    for(int v=0;v<V;v++)st(o+(long)t*DI+16*v,_mm512_mul_ps(z[v],R));}
}
template<int DI,int DO> void tokf(long N,const bf*x,const float*W,const float*b,bf*y){
  alignas(64) static bf w[DI*DO],zero[DO];
  pack(W,DI,DO,1,DI,w);
  #pragma omp parallel for schedule(static)
  for(long k=0;k<N/T;k++){alignas(64) bf xh[T*DI];float rs[T];
    lnhat<DI>(x+k*T*DI,xh,rs);
    gemm<1,DO>(xh,T,DI,w,b,y+k*T*DO,DO,zero,0);}
}
template<int DI,int DO> void tokb(long N,const bf*x,const float*W,const bf*dy,bf*dx,float*dW,float*db){
  alignas(64) static bf w[DI*DO];
  pack(W,DO,DI,DI,1,w); // B[k=o][n=i]=W[o][i]
  int nt=omp_get_max_threads();size_t per=DI*DO+DO;
  float*acc=(float*)aligned_alloc(64,sizeof(float)*per*nt);memset(acc,0,sizeof(float)*per*nt);
  #pragma omp parallel
  {float*a=acc+per*omp_get_thread_num();alignas(64) bf xh[T*DI],P1[T*DI],P2[T*DO],g[T*DI];float rs[T];
  #pragma omp for schedule(static)
  for(long k=0;k<N/T;k++){const bf*d=dy+k*T*DO;
    lnhat<DI>(x+k*T*DI,xh,rs);
    for(int t=0;t<T;t+=2){interleave(xh+(long)t*DI,xh+(long)(t+1)*DI,P1+(long)t*DI,DI);interleave(d+(long)t*DO,d+(long)(t+1)*DO,P2+(long)t*DO,DO);}
    outer<DI,DO>(P1,P2,T,a);colsum<DO>(P2,T,a+DI*DO);
    gemm<3,DI>(d,T,DO,w,nullptr,g,DI,nullptr,0);
    constexpr int V=DI/16;
    for(int t=0;t<T;t++){__m512 G[V],X[V],s=_mm512_setzero_ps(),q=s;
      for(int v=0;v<V;v++){G[v]=ld(g+(long)t*DI+16*v);X[v]=ld(xh+(long)t*DI+16*v);s=_mm512_add_ps(s,G[v]);q=_mm512_fmadd_ps(G[v],X[v],q);}
      __m512 m1=_mm512_set1_ps(_mm512_reduce_add_ps(s)/DI),m2=_mm512_set1_ps(_mm512_reduce_add_ps(q)/DI),R=_mm512_set1_ps(rs[t]);
      for(int v=0;v<V;v++)st(dx+(k*T+t)*DI+16*v,_mm512_mul_ps(R,_mm512_fnmadd_ps(X[v],m2,_mm512_sub_ps(G[v],m1))));}
  }}
  for(int i=0;i<nt;i++){for(int j=0;j<DI*DO;j++)dW[j]+=acc[per*i+j];for(int j=0;j<DO;j++)db[j]+=acc[per*i+DI*DO+j];}
  free(acc);
}
extern "C"{
int tok_fwd(int DI,int DO,long N,const bf*x,const float*W,const float*b,bf*y){
 if(DI==32&&DO==32)tokf<32,32>(N,x,W,b,y);else if(DI==32&&DO==64)tokf<32,64>(N,x,W,b,y);else if(DI==64&&DO==96)tokf<64,96>(N,x,W,b,y);else return 1;return 0;}
int tok_bwd(int DI,int DO,long N,const bf*x,const float*W,const bf*dy,bf*dx,float*dW,float*db){
 if(DI==32&&DO==32)tokb<32,32>(N,x,W,dy,dx,dW,db);else if(DI==32&&DO==64)tokb<32,64>(N,x,W,dy,dx,dW,db);else if(DI==64&&DO==96)tokb<64,96>(N,x,W,dy,dx,dW,db);else return 1;return 0;}
void pool_fwd(int D,long n,int S,const bf*x,bf*y){
  int h=S/2;__m512 Q=_mm512_set1_ps(.25f);
  #pragma omp parallel for schedule(static)
  for(long b=0;b<n;b++)for(int r=0;r<h;r++)for(int c=0;c<h;c++){
    const bf*i=x+((b*S+2*r)*S+2*c)*D;bf*o=y+((b*h+r)*h+c)*D;
    for(int v=0;v<D;v+=16)st(o+v,_mm512_mul_ps(Q,_mm512_add_ps(_mm512_add_ps(ld(i+v),ld(i+D+v)),_mm512_add_ps(ld(i+(long)S*D+v),ld(i+(long)S*D+D+v)))));}
}
void pool_bwd(int D,long n,int S,const bf*dy,bf*dx){
  int h=S/2;__m512 Q=_mm512_set1_ps(.25f);
  #pragma omp parallel for schedule(static)
  for(long b=0;b<n;b++)for(int r=0;r<h;r++)for(int c=0;c<h;c++){
    bf*i=dx+((b*S+2*r)*S+2*c)*D;const bf*o=dy+((b*h+r)*h+c)*D;
    for(int v=0;v<D;v+=16){__m512 g=_mm512_mul_ps(Q,ld(o+v));st(i+v,g);st(i+D+v,g);st(i+(long)S*D+v,g);st(i+(long)S*D+D+v,g);}}
}
// y = relu(x*a + c), 32 features
void bnr_fwd(long N,const bf*x,const float*a,const float*c,bf*y){
  #pragma omp parallel for schedule(static)
  for(long b=0;b<N/T;b++)for(int v=0;v<32;v+=16){__m512 A=_mm512_loadu_ps(a+v),C=_mm512_loadu_ps(c+v);
    for(long t=b*T;t<(b+1)*T;t++)st(y+t*32+v,_mm512_max_ps(_mm512_setzero_ps(),_mm512_fmadd_ps(ld(x+t*32+v),A,C)));}
}
void bnr_sums(long N,const bf*x,const bf*y,const bf*dy,const float*mean,const float*rstd,float*s,float*sx){
  int nt=omp_get_max_threads();float*acc=(float*)aligned_alloc(64,sizeof(float)*64*nt);memset(acc,0,sizeof(float)*64*nt);
  #pragma omp parallel
  {float*q=acc+64*omp_get_thread_num();
  #pragma omp for schedule(static)
  for(long b=0;b<N/T;b++)for(int v=0;v<32;v+=16){__m512 M=_mm512_loadu_ps(mean+v),R=_mm512_loadu_ps(rstd+v),p=_mm512_setzero_ps(),u=p;
    for(long t=b*T;t<(b+1)*T;t++){long i=t*32+v;
      __m512 g=_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(ld(y+i),_mm512_setzero_ps(),_CMP_GT_OQ),ld(dy+i));
      p=_mm512_add_ps(p,g);u=_mm512_fmadd_ps(g,_mm512_mul_ps(_mm512_sub_ps(ld(x+i),M),R),u);}
    _mm512_storeu_ps(q+v,_mm512_add_ps(p,_mm512_loadu_ps(q+v)));_mm512_storeu_ps(q+32+v,_mm512_add_ps(u,_mm512_loadu_ps(q+32+v)));}
  }
  for(int i=0;i<nt;i++)for(int j=0;j<32;j++){s[j]+=acc[64*i+j];sx[j]+=acc[64*i+32+j];}
  free(acc);
}
void bnr_bwd(long N,const bf*x,const bf*y,const bf*dy,const float*mean,const float*rstd,const float*a,const float*m1,const float*m2,bf*dx){
  #pragma omp parallel for schedule(static)
  for(long b=0;b<N/T;b++)for(int v=0;v<32;v+=16){__m512 M=_mm512_loadu_ps(mean+v),R=_mm512_loadu_ps(rstd+v),A=_mm512_loadu_ps(a+v),p=_mm512_loadu_ps(m1+v),u=_mm512_loadu_ps(m2+v);
    for(long t=b*T;t<(b+1)*T;t++){long i=t*32+v;
      __m512 g=_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(ld(y+i),_mm512_setzero_ps(),_CMP_GT_OQ),ld(dy+i));
      __m512 xh=_mm512_mul_ps(_mm512_sub_ps(ld(x+i),M),R);
      st(dx+i,_mm512_mul_ps(A,_mm512_fnmadd_ps(xh,u,_mm512_sub_ps(g,p))));}}
}
}
